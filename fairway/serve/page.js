"use strict";
const at = (id) => document.getElementById(id);
const form = at("work"), text = at("text"), result = at("result"), sides = at("sides");
const size = at("size"), most = Number(size.dataset.most);
let view = null, request = null, documents = [];

const say = (words, wrong = false) => {
  at("status").textContent = words;
  at("status").classList.toggle("wrong", wrong);
};

const bytes = () => new TextEncoder().encode(text.value).length;

const measure = () => {
  const count = bytes();
  size.textContent = `${count.toLocaleString("en")} of ${most.toLocaleString("en")} bytes`;
  return count;
};

const busy = (on) => {
  at("stop").hidden = !on;
  at("show").disabled = at("write").disabled = on;
};

// One request at a time; a new one takes the place of the one before.
const ask = async (path, body, read) => {
  if (request) request.abort();
  const own = (request = new AbortController());
  busy(true);
  try {
    const answer = await fetch(path, {
      method: "POST", signal: own.signal,
      headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    return await read(answer);
  } catch (error) {
    if (error.name === "AbortError") {
      if (request === own) say("Stopped.");
    } else {
      say(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`.replace("..", "."), true);
    }
    return null;
  } finally {
    if (request === own) {
      request = null;
      busy(false);
    }
  }
};

const show = async (wrote = null) => {
  if (!text.value) return say("The text is empty: write something, or choose a document.", true);
  if (measure() > most) return say("The text is too long: shorten it.", true);
  say("Computing ...");
  const body = { text: text.value, model: at("model").value };
  if (at("beside").value) body.beside = at("beside").value;
  const found = await ask("costs", body, (answer) => answer.json());
  if (!found) return;
  view = found;
  draw(wrote);
  say("");
};

const draw = (wrote) => {
  const two = view.sides.length === 2;
  sides.replaceChildren(...view.sides.map((side, number) => {
    const box = document.createElement("div"), name = document.createElement("h3");
    name.textContent = two ? `${"AB"[number]}: ${side.model}` : side.model;
    box.innerHTML = side.totals + side.text;
    box.prepend(name);
    return box;
  }));
  sides.classList.toggle("two", two);
  at("scale").innerHTML = view.scale;
  at("summary").innerHTML = view.summary;
  at("list").innerHTML = view.list;
  at("list-title").textContent = two ? "Where they differ most" : "The dearest tokens";
  at("wrote").hidden = wrote === null;
  if (wrote !== null) mark(wrote);
  result.classList.remove("stale");
  result.hidden = false;
};

// Underline what stands behind so many letters.
const mark = (letters) => {
  for (const box of sides.querySelectorAll(".costs")) {
    let length = 0;
    for (const cell of box.children) {
      length += cell.textContent.length;
      cell.classList.toggle("wrote", length > letters);
    }
  }
};

const tip = (cell) => {
  if (cell.querySelector(".tip")) return;
  const number = cell.querySelector("input").value, box = document.createElement("span");
  box.className = "tip";
  for (const side of view.sides) {
    if (view.sides.length === 2) {
      const who = document.createElement("b");
      who.className = "who";
      who.textContent = side.model;
      box.append(who);
    }
    box.insertAdjacentHTML("beforeend", side.tips[number]);
  }
  cell.append(box);
};

const cells = (number) => sides.querySelectorAll(`.costs input[value="${number}"]`);

const look = (event) => {
  const cell = event.target.closest(".costs label");
  for (const twin of sides.querySelectorAll(".twin")) twin.classList.remove("twin");
  if (!cell) return;
  tip(cell);
  for (const other of cells(cell.querySelector("input").value)) {
    if (other.parentElement !== cell) other.parentElement.classList.add("twin");
  }
};

sides.addEventListener("pointerover", look);
sides.addEventListener("focusin", look);

at("list").addEventListener("click", (event) => {
  const button = event.target.closest(".go");
  if (!button) return;
  const [input] = cells(button.value);
  input.checked = true;
  // Shown as the keyboard would.
  input.focus({ focusVisible: true });
  input.parentElement.scrollIntoView({ block: "center" });
});

const write = async () => {
  if ("record" in at("model").selectedOptions[0].dataset) {
    return say(`${at("model").value} is a record of costs and cannot write: choose a model.`, true);
  }
  const before = text.value;
  const body = { model: at("model").value, prompt: before, stream: true };
  for (const id of ["tokens", "temperature", "top_p", "seed"]) {
    if (!at(id).reportValidity()) return;
    body[id === "tokens" ? "max_tokens" : id] = Number(at(id).value);
  }
  say("Writing ...");
  at("document").value = "";
  const ended = await ask("v1/completions", body, async (answer) => {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return true;
      const lines = (rest + value).split("\n\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") continue;
        for (const choice of JSON.parse(line.slice(6)).choices) text.value += choice.text;
      }
      text.scrollTop = text.scrollHeight;
      measure();
    }
  });
  if (text.value === before) return ended && say("The model ends the document here.");
  if (ended) await show(before.length);
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  show();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    show();
  }
});
at("write").addEventListener("click", write);
at("stop").addEventListener("click", () => request && request.abort());
text.addEventListener("input", () => {
  measure();
  at("document").value = "";
  if (!result.hidden) result.classList.add("stale");
});
for (const id of ["model", "beside"]) {
  at(id).addEventListener("change", () => text.value && show());
}
at("document").addEventListener("change", () => {
  const chosen = at("document").value;
  if (chosen === "") return;
  text.value = documents[Number(chosen)];
  show();
});

const begin = async () => {
  at("endpoint").textContent = new URL("v1/completions", location.href).href;
  measure();
  const answer = await fetch("documents");
  if (!answer.ok) return;
  documents = (await answer.json()).documents;
  at("document").append(...documents.map((words, number) => {
    const head = words.trim().replace(/\s+/g, " ");
    const shown = head.length > 40 ? `${head.slice(0, 40)}\u2026` : head;
    return new Option(`validation ${number + 1}: ${shown}`, String(number));
  }));
  if (text.value || !documents.length) return;
  at("document").value = "0";
  text.value = documents[0];
  await show();
};
begin();
