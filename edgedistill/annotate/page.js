"use strict";
// One picture is shown at a time. A key counts once its picture is drawn, and the next picture is shown once the server
// has written the answer to the disk. Names are set as text, never as HTML.

const KEYS = "123456789abdefhijklmoprtvwyz"; // of the classes; g, s, x, n, c, u and q are not among them
const tab = crypto.randomUUID();
const $ = (id) => document.getElementById(id);
let state = null; // what the server said: queue, classes, file
let place = 0; // in the queue
let skipped = new Set();
let cluster = null; // {number, paths, leftOut} while a cluster is shown
let busy = true; // a request is under way, or the picture is not drawn yet
let ended = false;
const loaded = new Map(); // pictures by path: the one shown and the next ones

const labeled = (entry) => entry.label.name !== "" || entry.label.how !== "";
const current = () => (place < state.queue.length ? state.queue[place] : null);

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Everything labeled so far is saved; start edgedistill annotate again.");
  }
  if (response.ok) return response.json();
  const text = await response.text();
  let message = text;
  try { message = JSON.parse(text).error; } catch { /* plain text */ }
  throw Object.assign(new Error(message), {status: response.status});
}

function say(text) { $("message").textContent = text; }

function picture(entry) {
  if (!loaded.has(entry.path)) {
    const image = new Image();
    image.alt = entry.path;
    image.src = `/picture?path=${encodeURIComponent(entry.path)}`;
    loaded.set(entry.path, {image, drawn: image.decode().then(() => true, () => false)});
  }
  return loaded.get(entry.path);
}

function button(key, text, note, act, options = {}) {
  const element = document.createElement("button");
  element.type = "button";
  for (const [tag, content] of [["kbd", key], ["span", text], ["small", note]]) {
    const part = document.createElement(tag);
    part.textContent = content;
    element.append(part);
  }
  if (options.pressed) element.setAttribute("aria-pressed", "true");
  if (options.guess) element.classList.add("guess");
  element.addEventListener("click", () => { element.blur(); run(act); });
  return element;
}

function drawChoices() {
  const entry = current();
  const guess = entry && entry.guess;
  $("classes").replaceChildren(...state.classes.map(({name, labels}, index) => button(
    KEYS[index] || "", name, String(labels), () => answer(name),
    {pressed: !cluster && entry && entry.label.name === name, guess: name === guess},
  )));
  $("guess").replaceChildren(...(guess ? [button(
    "Enter", guess, entry.sure === null ? "guess" : `guess, ${Math.round(100 * entry.sure)} %`, () => answer(guess),
    {guess: true},
  )] : []));
  $("names").replaceChildren(...state.classes.map(({name}) => new Option(name)));
  const actions = [["n", "new or other class", newClass], ["u", "undo", undo]];
  if (cluster) actions.push(["Esc", "leave the cluster", leaveCluster]);
  else if (entry) actions.push(
    ["s", "skip", skip], ["x", "unusable", unusable], ["c", "its whole cluster", openCluster],
    ["\u2190", "previous", () => move(-1)], ["\u2192", "next", () => move(1)],
  );
  $("actions").replaceChildren(...actions.map(([key, text, act]) => button(key, text, "", act)));
}

async function draw() {
  busy = true;
  delete document.body.dataset.path;
  const entry = current();
  const count = state.queue.filter(labeled).length;
  $("name").textContent = state.name;
  $("bar").value = count / state.queue.length;
  $("progress").textContent = `${count} of ${state.queue.length}`;
  $("single").hidden = !entry || Boolean(cluster);
  $("cluster").hidden = !cluster;
  $("done").hidden = Boolean(entry);
  $("done-text").textContent = `The labels are in ${state.file}. Undo takes the last one back; Close ends the server.`;
  drawChoices();
  if (entry && !cluster) {
    const {image, drawn} = picture(entry);
    $("figure").replaceChildren(image);
    const label = entry.label.name || entry.label.how;
    $("caption").textContent = `${entry.path}: ${label ? `labeled ${label}` : entry.why}`;
    if (!await drawn) {
      loaded.delete(entry.path); // asked for again when it is shown again
      say("The picture cannot be shown: mark it as unusable (x), or skip it (s).");
    }
    const open = state.queue.filter((other) => other !== entry && !labeled(other) && !skipped.has(other.path));
    const ahead = [...open.filter((other) => state.queue.indexOf(other) > place), ...open].slice(0, 3);
    for (const path of loaded.keys()) {
      if (path !== entry.path && ahead.every((other) => other.path !== path)) loaded.delete(path);
    }
    ahead.forEach(picture);
    document.body.dataset.path = entry.path;
  }
  busy = false;
}

// what a key does; keys are ignored until it is done
async function run(act) {
  if (busy || ended || !state) return;
  busy = true;
  say("");
  try {
    await act();
  } catch (error) {
    await shown(error);
  }
  if (!ended) await draw();
}

async function shown(error) {
  if (error.status === 409) {
    cluster = null;
    take(await ask("/state").catch(() => state));
    say(`${error.message}. Nothing was changed; it is shown as it is now.`);
  } else {
    say(error.message);
  }
}

function take(fresh) {
  state = fresh;
  place = Math.min(place, state.queue.length);
}

function changed(response) {
  state.classes = response.classes;
  for (const entry of state.queue) {
    if (Object.hasOwn(response.labels, entry.path)) entry.label = response.labels[entry.path];
  }
}

function advance() {
  const order = state.queue.map((_, index) => (place + 1 + index) % state.queue.length);
  const open = order.filter((index) => !labeled(state.queue[index]));
  const fresh = open.find((index) => !skipped.has(state.queue[index].path));
  if (fresh === undefined) skipped = new Set(); // the skipped ones come again
  place = fresh ?? open[0] ?? state.queue.length;
}

async function answer(name) {
  if (cluster) {
    const paths = cluster.paths.filter((path) => !cluster.leftOut.has(path));
    if (!paths.length) throw new Error("No picture is chosen.");
    changed(await ask("/label-cluster", {tab, cluster: cluster.number, name, paths}));
    say(`${paths.length} labeled ${name}; u takes them back.`);
    cluster = null;
    if (current() && labeled(current())) advance();
    return;
  }
  const entry = current();
  if (!entry) return;
  changed(await ask("/label", {tab, path: entry.path, name, expected: entry.label}));
  advance();
}

async function unusable() {
  const entry = current();
  changed(await ask("/label", {tab, path: entry.path, unusable: true, expected: entry.label}));
  advance();
}

async function undo() {
  cluster = null;
  const response = await ask("/undo", {tab});
  changed(response);
  const paths = Object.keys(response.labels);
  if (!paths.length) throw new Error("There is nothing to undo in this tab; \u2190 leads to earlier pictures.");
  const index = state.queue.findIndex((entry) => paths.includes(entry.path));
  if (index >= 0) place = index;
}

function skip() {
  const entry = current();
  if (!entry) return;
  skipped.add(entry.path);
  advance();
}

function move(step) {
  const last = state.queue.length - 1;
  place = Math.max(0, Math.min(last, place + step));
}

async function openCluster() {
  const entry = current();
  if (!entry) return;
  const {paths} = await ask(`/cluster?number=${entry.cluster}`);
  cluster = {number: entry.cluster, paths, leftOut: new Set()};
  $("cluster-text").textContent =
    `${paths.length} pictures look alike. A class labels all of them; a click leaves one out.`;
  const first = []; // a key counts once these are drawn
  $("grid").replaceChildren(...paths.map((path, index) => {
    const element = document.createElement("button"), image = new Image();
    element.type = "button";
    image.loading = index < 24 ? "eager" : "lazy";
    if (index < 24) first.push(image);
    image.alt = image.title = path;
    image.src = `/picture?small&path=${encodeURIComponent(path)}`;
    element.append(image);
    element.addEventListener("click", () => {
      element.blur();
      const leftOut = element.classList.toggle("left-out");
      cluster.leftOut[leftOut ? "add" : "delete"](path);
    });
    return element;
  }));
  await Promise.all(first.map((image) => image.decode().catch(() => {})));
}

function leaveCluster() {
  cluster = null;
  $("grid").replaceChildren();
}

function newClass() {
  $("form").hidden = false;
  $("class").value = "";
  $("class").focus();
}

function closeForm() {
  $("form").hidden = true;
  $("class").blur();
}

async function close() {
  await ask("/close", {});
  ended = true;
  document.body.dataset.ended = "true";
  say(`Closed. The labels are in ${state.file}. This tab can be closed.`);
  for (const element of document.querySelectorAll("button, input")) element.disabled = true;
}

const ACTIONS = {
  n: newClass, u: undo, Backspace: undo, s: skip, " ": skip, x: unusable, c: openCluster, Escape: leaveCluster,
  ArrowLeft: () => move(-1), ArrowRight: () => move(1),
};

function actOf(key) {
  const entry = current();
  const name = state.classes[KEYS.indexOf(key)]?.name;
  if (key.length === 1 && KEYS.includes(key)) return name === undefined ? null : () => answer(name);
  if (key === "Enter" || key === "g") return entry && entry.guess ? () => answer(entry.guess) : null;
  if (cluster && !["n", "u", "Backspace", "Escape"].includes(key)) return null;
  if (!entry && !["u", "Backspace", "ArrowLeft"].includes(key)) return null;
  return Object.hasOwn(ACTIONS, key) ? ACTIONS[key] : null;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !state) return;
  if (event.target === $("class")) {
    if (event.key === "Escape") closeForm();
    return;
  }
  if (event.target.closest("button") && [" ", "Enter"].includes(event.key)) return; // the button's own
  const act = actOf(event.key);
  if (!act) return;
  event.preventDefault();
  run(act);
});

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("class").value;
  closeForm();
  run(() => answer(name));
});
$("close").addEventListener("click", () => run(close));
document.addEventListener("visibilitychange", () => {
  // another tab may have labeled meanwhile
  if (!document.hidden && !cluster) run(async () => { take(await ask("/state")); });
});

(async () => {
  try {
    state = await ask("/state");
    place = -1;
    advance();
    say(state.notes.join(" "));
    await draw();
  } catch (error) {
    say(error.message);
  }
})();
