// A button of the form is pressed with its keys, unless a text is being typed. A second press does not send the form twice.
"use strict";
(() => {
  const form = document.getElementById("rate");
  if (!form) return;
  let sent = false;
  form.addEventListener("submit", (event) => { if (sent) event.preventDefault(); sent = true; });
  addEventListener("pageshow", () => { sent = false; });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.shiftKey && event.key.length > 1) return; // an arrow with Shift selects text; a digit may need Shift
    if (event.target.closest("input, textarea, select")) return;
    const button = [...form.querySelectorAll("button[data-keys]")].find((b) => b.dataset.keys.split(" ").includes(event.key));
    if (!button) return;
    event.preventDefault();
    button.click();
  });
})();
