// For every page: running ages, copy buttons, progress in the title, and a message when the server does not answer.
"use strict";
(() => {
  const ahead = Number(document.querySelector('meta[name="now"]').content) * 1000 - Date.now();
  const now = () => (Date.now() + ahead) / 1000;
  window.trainhop = {now};

  const words = (value) => {
    const s = Math.max(0, Math.round(value)), two = (n) => String(n).padStart(2, "0");
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor(s % 3600 / 60))} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
  };
  const tick = () => {
    if (document.hidden) return;
    for (const time of document.querySelectorAll("time.age")) {
      const text = words(time.dataset.at ? now() - time.dataset.at : time.dataset.until - now());
      if (time.textContent !== text) time.textContent = text;
    }
  };
  setInterval(tick, 1000);
  document.addEventListener("visibilitychange", tick);

  // The tab title shows the job's progress.
  const heading = () => {
    const facts = document.getElementById("facts");
    if (!facts) return;
    const {title, percent, state} = facts.dataset;
    const whole = Math.floor(Number(percent));
    const signs = {running: `${whole} % · `, succeeded: "✓ ", failed: "✗ ", paused: "⏸ ", cancelled: "⏹ ", queued: "… "};
    document.title = signs[state] + title;
    const href = `/favicon.svg?state=${state}&percent=${state === "succeeded" ? 100 : whole}`;
    const icon = document.getElementById("favicon");
    if (icon.getAttribute("href") !== href) icon.setAttribute("href", href);
  };
  heading();
  const arrived = () => { heading(); reveal(); tick(); };
  document.addEventListener("htmx:after:swap", arrived);
  document.addEventListener("htmx:sse:after:message", arrived);

  // Copy buttons
  const reveal = () => document.querySelectorAll(".copy[hidden]").forEach((button) => { button.hidden = false; });
  reveal();
  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".copy");
    if (!button) return;
    const text = button.parentElement.querySelector("pre, .secret").textContent;
    let done = true;
    try { await navigator.clipboard.writeText(text); } catch { done = false; }
    button.lastChild.textContent = done ? " copied" : " select and copy";
    setTimeout(() => { button.lastChild.textContent = " copy"; }, 2000);
  });

  // Actions that cannot be undone need a confirmation.
  document.addEventListener("submit", (event) => {
    const question = event.submitter?.dataset.confirm ?? event.target.dataset?.confirm;
    if (question && !confirm(question)) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  }, true);

  // Messages above the page
  const notice = document.getElementById("notice");
  let silent = false;
  const say = (text, kind = "", link = "") => {
    silent = false;
    notice.replaceChildren();
    if (!text) return;
    const box = document.createElement("div");
    box.className = `callout ${kind}`;
    const p = document.createElement("p");
    p.textContent = text;
    if (link) {
      const a = document.createElement("a");
      a.href = link; a.textContent = "Reload";
      p.append(" ", a);
    }
    box.append(p);
    notice.append(box);
  };
  const expired = () => say("Your login has expired or was revoked. Log in again.", "bad", location.href);
  const gone = () => say("This job was deleted.", "bad");
  const unanswered = () => {
    say("The server does not answer. Retrying.", "bad");
    silent = true;
  };
  window.trainhop.say = say;
  // This runs after the server's message is swapped in at the same place.
  document.addEventListener("htmx:finally:request", (event) => {
    const status = event.detail?.ctx?.response?.status;
    if (status === 401) expired();
    if (status === 404 && event.target.id === "job") event.target.dispatchEvent(new Event("gone", {bubbles: true}));
  });
  document.addEventListener("htmx:error", (event) => {
    if (event.detail?.ctx?.request) unanswered();
  });
  // This runs before the answer is swapped in, which may put a message at the same place. The message of a failed poll
  // disappears with the next poll.
  document.addEventListener("htmx:after:request", (event) => {
    if (silent) say("");
    const {request, response} = event.detail.ctx;
    silent = response.status >= 500 && request.method === "GET";
  });
  document.addEventListener("htmx:sse:error", (event) => {
    if (event.detail?.status === 401) expired();
    else if (event.detail?.status === 404) gone();
    else unanswered();
  });
  document.addEventListener("htmx:sse:after:connection", (event) => {
    if (event.detail?.connection?.status === 200) say("");
  });
  document.addEventListener("login", expired);
  document.addEventListener("gone", gone);

  // The script of a form comes when a person goes there. A form that is sent before waits for it.
  const bring = (form) => {
    if (!form.script) {
      form.script = document.createElement("script");
      form.script.src = form.dataset.script;
      for (const end of ["load", "error"]) form.script.addEventListener(end, () => form.removeAttribute("data-script"));
      document.head.append(form.script);
    }
    return form.script;
  };
  document.addEventListener("focusin", (event) => {
    const form = event.target.closest("form[data-script]");
    if (form) bring(form);
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-script]")) return;
    event.preventDefault();
    event.stopPropagation();
    const again = () => event.target.requestSubmit(event.submitter);
    for (const end of ["load", "error"]) bring(event.target).addEventListener(end, again);
  }, true);
})();
