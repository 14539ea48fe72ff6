// The form: a chosen file is uploaded at once, and each change requests a new plan.
"use strict";
(() => {
  const form = document.getElementById("job-form"), file = document.getElementById("file");
  const drop = document.getElementById("drop"), bar = document.getElementById("sending");
  const shown = document.getElementById("preview"), button = form.querySelector(".large"), reason = document.getElementById("no-data");
  file.removeAttribute("name");

  const replan = () => document.body.dispatchEvent(new CustomEvent("replan", {bubbles: true}));
  // Without data there is no job. The button says so before the server does.
  const ready = () => {
    const {data, more} = form.elements;
    reason.hidden = !bar.hidden || data.value !== "" || /\bdatasets["']?\s*:/.test(more.value);
    button.disabled = !bar.hidden || !reason.hidden;
  };
  let later = 0;
  form.addEventListener("input", (event) => {
    if (event.target === file) return;
    ready();
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
  // Only the last request counts. A late answer to an earlier request would show another file.
  let request = null;
  const take = (next) => {
    request?.abort();
    request = next;
    bar.hidden = true;
    ready();
    shown.removeAttribute("aria-busy");
    window.trainhop.say("");
  };
  const show = (html) => {
    shown.innerHTML = html;
    const found = shown.querySelector("[data-sha]"), field = form.elements.data;
    if (found?.dataset.sha) {
      if (field.tagName === "SELECT" && ![...field.options].some((o) => o.value === found.dataset.sha)) {
        field.add(new Option(`${found.dataset.name} · ${found.dataset.rows} row${found.dataset.rows === "1" ? "" : "s"}`, found.dataset.sha));
      }
      field.value = found.dataset.sha;
    }
    ready();
    replan();
  };
  const columns = form.elements.columns;
  let last = null;
  const send = (chosen) => {
    if (!chosen) return;
    last = chosen;
    const sent = new XMLHttpRequest(), asked = query();
    take(sent);
    form.elements.data.value = "";
    asked.set("name", chosen.name);
    if (columns?.value.trim()) asked.set("columns", columns.value);
    sent.open("POST", `/submit/data?${asked}`);
    sent.setRequestHeader("HX-Request", "true");
    sent.setRequestHeader("Accept", "text/html");
    bar.hidden = false;
    ready();
    sent.upload.addEventListener("progress", (event) => { bar.value = event.lengthComputable ? event.loaded / event.total : 0; });
    const ended = (then) => () => {
      request = null;
      take();
      then();
    };
    sent.addEventListener("load", ended(() => {
      show(sent.responseText);
      if (form.elements.more.value.trim()) again();
    }));
    sent.addEventListener("error", ended(() => window.trainhop.say("The upload failed. Try again.", "bad")));
    sent.send(chosen);
  };
  file.addEventListener("change", () => send(file.files[0]));
  columns?.addEventListener("change", () => send(last));
  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.remove("over"); });
  drop.addEventListener("drop", (event) => send(event.dataTransfer.files[0]));

  const again = async (event) => {
    const field = form.elements.data, sha = field.value;
    if (!sha && event?.target !== field) return;
    const look = new AbortController();
    take(look);
    if (!sha) return show("");
    shown.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(`/submit/data/${sha}`, {method: "POST", body: new FormData(form), signal: look.signal, headers: {"HX-Request": "true", Accept: "text/html"}});
      show(await answer.text());
    } catch {
      if (look.signal.aborted) return;
      shown.replaceChildren();
      window.trainhop.say("The server does not answer. The preview could not be loaded.", "bad");
    } finally {
      if (!look.signal.aborted) shown.removeAttribute("aria-busy");
    }
  };
  // The preview depends on these fields.
  for (const name of ["data", "base_model", "sequence_len", "more"]) form.elements[name].addEventListener("change", again);
  // The user, or a browser that restores the form, may have chosen a file before this script was loaded.
  ready();
  if (file.files.length) send(file.files[0]); else again();
})();
