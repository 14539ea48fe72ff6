// The form: a file is sent as soon as it is there, and every change asks for a new plan.
"use strict";
(() => {
  const form = document.getElementById("job-form"), file = document.getElementById("file");
  const drop = document.getElementById("drop"), bar = document.getElementById("sending");
  const shown = document.getElementById("preview");
  file.removeAttribute("name");

  const replan = () => document.body.dispatchEvent(new CustomEvent("replan", {bubbles: true}));
  let later = 0;
  form.addEventListener("input", (event) => {
    if (event.target === file) return;
    clearTimeout(later);
    later = setTimeout(replan, 350);
  });

  const query = () => {
    const asked = new URLSearchParams({
      base_model: form.elements.base_model.value,
      train_on_inputs: /^\s*train_on_inputs:\s*true/m.test(form.elements.more.value),
    });
    const length = Number(form.elements.sequence_len.value);
    if (Number.isInteger(length) && length >= 8) asked.set("sequence_len", length);
    return asked;
  };
  const show = (html) => {
    shown.innerHTML = html;
    const found = shown.querySelector("[data-sha]");
    if (!found?.dataset.sha) return;
    const field = form.elements.data;
    if (field.tagName === "SELECT" && ![...field.options].some((o) => o.value === found.dataset.sha)) {
      field.add(new Option(`${found.dataset.name} · ${found.dataset.rows} rows`, found.dataset.sha));
    }
    field.value = found.dataset.sha;
    replan();
  };
  const send = (chosen) => {
    if (!chosen) return;
    const asked = query();
    asked.set("name", chosen.name);
    const request = new XMLHttpRequest();
    request.open("POST", `/submit/data?${asked}`);
    request.setRequestHeader("HX-Request", "true");
    request.setRequestHeader("Accept", "text/html");
    bar.hidden = false;
    request.upload.addEventListener("progress", (event) => { bar.value = event.lengthComputable ? event.loaded / event.total : 0; });
    request.addEventListener("loadend", () => {
      bar.hidden = true;
      if (request.status === 0) window.trainhop.say("The file could not be sent; try again.", "bad");
      else show(request.responseText);
    });
    request.send(chosen);
  };
  file.addEventListener("change", () => send(file.files[0]));
  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.remove("over"); });
  drop.addEventListener("drop", (event) => send(event.dataTransfer.files[0]));

  let asked = 0;
  const again = async () => {
    const sha = form.elements.data.value, mine = ++asked;
    if (!sha) return;
    shown.setAttribute("aria-busy", "true");
    const answer = await fetch(`/submit/data/${sha}?${query()}`, {headers: {"HX-Request": "true", Accept: "text/html"}});
    const html = await answer.text();
    if (mine !== asked) return;
    shown.removeAttribute("aria-busy");
    show(html);
  };
  // Everything that what is seen of a row depends on.
  for (const name of ["data", "base_model", "sequence_len", "more"]) form.elements[name].addEventListener("change", again);
  // A quick hand, or a browser that restores a form, has chosen a file before this script was there.
  if (file.files.length) send(file.files[0]); else again();
})();
