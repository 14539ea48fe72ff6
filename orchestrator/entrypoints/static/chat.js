// A chat on a job's page: both answers are streamed from the API, and the turns stay in this page.
"use strict";
(() => {
  const form = document.getElementById("chat-form"), list = document.getElementById("chat-turns");
  const status = document.getElementById("chat-status"), stop = document.getElementById("chat-stop");
  const fresh = document.getElementById("chat-new"), ask = form.querySelector("button.primary");
  const names = {base: "base model", adapter: "adapter"};
  const reasons = {length: "It reached the maximum of tokens.", time: "It took too long and was ended."};
  let turns = [], running = null;

  const element = (name, text = "", className = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const show = (question) => {
    const article = element("article", "", "sample"), answers = element("div", "", "answers"), texts = {};
    for (const [arm, name] of Object.entries(names)) {
      const box = element("div"), text = texts[arm] = element("blockquote");
      text.tabIndex = 0;
      text.setAttribute("aria-label", `Answer of the ${name}`);
      box.append(element("p", name, "label"), text);
      answers.append(box);
    }
    article.append(element("h3", question), answers);
    list.append(article);
    return texts;
  };
  const body = () => {
    const field = (name) => form.elements[name].value;
    const made = {question: field("question"), system: field("system"), max_tokens: Number(field("max_tokens")), turns};
    if (field("place") === "machine") made.on_machine = true;
    if (field("place") !== "address") return made;
    made.endpoint = {url: field("url"), model: field("model"), base_model: field("base_model"), key: field("key")};
    if (field("lora").trim()) made.endpoint.lora = Number(field("lora"));
    else if (!field("base_model")) made.only = "adapter";
    return made;
  };
  const busy = (on) => { ask.disabled = on; stop.hidden = !on; };

  // Events of the answer, one `data:` line each
  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "";;) {
      const {value, done} = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield JSON.parse(line.slice(5));
    }
  }
  const apply = (event, texts, answer) => {
    if (event.kind === "loading") status.textContent = `${event.text[0].toUpperCase()}${event.text.slice(1)}…`;
    if (event.kind === "ready") status.textContent = "The models answer…";
    if (event.kind === "text") texts[event.arm].textContent = (answer[event.arm] += event.text);
    if (event.kind === "end" && reasons[event.text]) texts[event.arm].title = reasons[event.text];
    if (event.kind === "failed") throw new Error(event.text);
  };
  const refusal = async (response) => {
    try {
      const problem = await response.json();
      return [problem.detail, ...(problem.errors ?? []).map((e) => `${e.pointer.slice(1)}: ${e.detail}`)].join(" ");
    } catch { return `The server refused (${response.status}).`; }
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    const asked = body(), answer = {base: "", adapter: ""};
    running = new AbortController();
    busy(true);
    status.textContent = "Waiting for the first words…";
    const texts = show(asked.question);
    try {
      const response = await fetch(`/api/v1/jobs/${form.dataset.job}/chat`, {
        method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(asked), signal: running.signal,
      });
      if (!response.ok) throw new Error(await refusal(response));
      for await (const each of events(response)) apply(each, texts, answer);
      status.textContent = "Both answers are complete.";
      form.elements.question.value = "";
    } catch (error) {
      const stopped = error.name === "AbortError";
      status.textContent = stopped ? "Stopped." : error instanceof TypeError ? "The server does not answer." : error.message;
      if (!answer.base && !answer.adapter) list.lastElementChild.remove();
    }
    if (answer.base || answer.adapter) turns = [...turns, {question: asked.question, ...answer}];
    for (const arm of Object.keys(names)) if (!answer[arm]) texts[arm].textContent = "(empty)";
    fresh.hidden = !turns.length;
    running = null;
    busy(false);
  });
  stop.addEventListener("click", () => running?.abort());
  fresh.addEventListener("click", () => {
    running?.abort();
    turns = [];
    list.replaceChildren();
    status.textContent = "";
    fresh.hidden = true;
    form.elements.question.focus();
  });
})();
