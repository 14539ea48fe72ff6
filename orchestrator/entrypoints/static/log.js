// Growing output: follow the newest line while the checkbox is on.
"use strict";
(() => {
  const log = document.getElementById("log"), follow = document.getElementById("follow");
  follow.parentElement.hidden = !log.querySelector(".tail");
  const down = () => { if (follow.checked && !location.hash) log.scrollTop = log.scrollHeight; };
  down();
  document.addEventListener("htmx:after:swap", down);
  log.addEventListener("scroll", () => {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    if (!atEnd) follow.checked = false;
  });
  follow.addEventListener("change", down);
})();
