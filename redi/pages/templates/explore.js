"use strict";
const controls = JSON.parse(document.getElementById("controls").textContent);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const named = (name, within) => within.querySelector(`[data-name="${name}"]`);

// One request at a time: of every panel only the newest one waits.
const waiting = new Map();
let working = false;
async function schedule(name, request) {
  waiting.set(name, request);
  if (working) return;
  working = true;
  while (waiting.size) {
    const [next, run] = waiting.entries().next().value;
    waiting.delete(next);
    await run();
  }
  working = false;
}

async function post(path, body) {
  for (;;) {
    const answer = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    if (answer.status !== 429) {
      const content = await answer.json();
      if (!answer.ok) throw new Error(content.error);
      return content;
    }
    await new Promise((resolve) => setTimeout(resolve, 500)); // another page is using the model
  }
}

function figure(picture, size) {
  const box = document.createElement("figure"), image = new Image(size, size), caption = document.createElement("figcaption");
  image.src = picture.src;
  image.alt = caption.textContent = picture.caption;
  image.onload = () => image.classList.toggle("enlarged", image.naturalWidth < size);
  box.append(image, caption);
  return box;
}

// Small images are enlarged by a whole factor, so that their pixels stay squares of one size.
const enlarged = (least, most) => Math.min(most, controls.image_size * Math.ceil(least / controls.image_size));

function show(result, content) {
  result.querySelector(".pictures").replaceChildren(...content.pictures.map((one) => figure(one, enlarged(176, 320))));
  result.querySelector(".strips").replaceChildren(...content.strips.flatMap((strip) => {
    const title = document.createElement("h3"), frames = document.createElement("div");
    title.textContent = strip.title;
    frames.className = "frames";
    frames.append(...strip.pictures.map((one) => figure(one, enlarged(64, 96))));
    return [title, frames];
  }));
}

const SLOW = 5; // seconds; a slower model waits for the button
let seconds = 0; // of the newest answer
async function fill(result, path, body) {
  const status = result.querySelector(".status"), warning = result.querySelector(".warning"), start = performance.now();
  const clock = setInterval(() => {
    status.textContent = `working, ${Math.round((performance.now() - start) / 1000)} s`;
  }, 1000);
  result.classList.add("working");
  try {
    const content = await post(path, await body());
    seconds = (performance.now() - start) / 1000;
    warning.hidden = true;
    show(result, content);
    status.textContent = [...content.notes, `${seconds.toFixed(1)} s`].join("; ");
  } catch (error) {
    warning.textContent = error instanceof TypeError ? "the program redi.explore does not answer: is it running?" : error.message;
    warning.hidden = false;
    status.textContent = "";
    result.querySelector(".pictures").replaceChildren();
    result.querySelector(".strips").replaceChildren();
  }
  clearInterval(clock);
  result.classList.remove("working");
}

function query(within) {
  const label = named("label", within), evaluations = named("num_evaluations", within);
  return {
    seed: Number(named("seed", within)?.value ?? 0),
    ...(label && { label: label.value === "null" ? null : Number(label.value) }),
    ...(evaluations && { num_evaluations: Number(evaluations.value) }),
  };
}

function settings(side) {
  const value = (name, within) => Number(named(name, within).value);
  const guidance = all("[data-rule]", side).map((rule) => [rule.dataset.rule, Object.fromEntries(
    all("[data-group]", rule).map((group) => [group.dataset.group, {
      scale: value("scale", group), interval: [value("first", group), value("last", group)],
    }]))]);
  const lead = all("[data-lead] input", side).map((input) => [input.dataset.name, Number(input.value)]);
  const seed = Number(named("seed", document.querySelector(".shared")).value);
  return { ...query(side), seed, guidance: Object.fromEntries(guidance), lead: Object.fromEntries(lead) };
}

const panel = document.getElementById("generate"), generateButton = panel.querySelector(".run");
function generate(side) {
  generateButton.hidden = seconds <= SLOW;
  schedule(side.dataset.side, () => fill(side.querySelector(".result"), "generate", () => settings(side)));
}
const generateAll = () => all(".side:not([hidden])").forEach(generate);

let timer;
panel.addEventListener("input", (event) => {
  const side = event.target.closest(".side");
  if (event.target.id === "compare" || seconds > SLOW) {
    generateButton.hidden = seconds <= SLOW;
    return;
  }
  clearTimeout(timer);
  timer = setTimeout(side ? () => generate(side) : generateAll, 120);
});
generateButton.addEventListener("click", generateAll);

document.getElementById("compare").addEventListener("change", (event) => {
  const [first, second] = all(".side"), values = all("input, select", first);
  all("input, select", second).forEach((input, i) => { input.value = values[i].value; });
  all(".slider", second).forEach(mirror);
  second.hidden = !event.target.checked;
  panel.classList.toggle("comparing", event.target.checked);
  if (event.target.checked) generate(second);
});

function mirror(slider) {
  slider.querySelector("output").value = slider.querySelector("input").value;
}
for (const slider of all(".slider")) {
  mirror(slider);
  slider.addEventListener("input", () => mirror(slider));
}
all(".next-seed").forEach((button) => button.addEventListener("click", () => {
  const input = named("seed", button.parentElement);
  input.value = Number(input.value) + 1;
  input.dispatchEvent(new Event("input", { bubbles: true }));
}));
all("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));

function base64(file) {
  if (file.size > controls.max_upload_bytes) {
    throw new Error(`the file is too large: must have at most ${controls.max_upload_bytes.toLocaleString("en")} bytes`);
  }
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(",")[1] ?? "");
    reader.onerror = () => reject(new Error("the browser cannot read this file"));
    reader.readAsDataURL(file);
  });
}

for (const question of all("#features, #images")) {
  const ask = () => schedule(question.id, () => fill(question.querySelector(".result"), question.id, async () => {
    const file = question.querySelector("input[type=file]").files[0];
    const source = file ? await base64(file) : question.id === "images" ? settings(document.querySelector(".side")) : null;
    return { ...query(question), image: source };
  }));
  question.querySelector(".run").addEventListener("click", ask);
  question.querySelector(".without-file")?.addEventListener("click", () => {
    question.querySelector("input[type=file]").value = "";
    ask();
  });
  question.querySelector("input[type=file]").addEventListener("change", ask);
}

const tabs = all("[role=tab]");
function select(tab) {
  tabs.forEach((one) => {
    one.setAttribute("aria-selected", one === tab);
    one.tabIndex = one === tab ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).hidden = one !== tab;
  });
}
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      const next = tabs[(i + step + tabs.length) % tabs.length];
      select(next);
      next.focus();
    }
  });
});
generateAll();
