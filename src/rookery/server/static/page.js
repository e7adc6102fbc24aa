// The page of `rookery serve`: a talk over POST /v1/responses, and its tree of turns from GET /v1/states.
// Whatever a model or a server says is put in as text, never as markup.

const byId = (id) => document.getElementById(id);
const remembered = sessionStorage; // of this tab only: the ids of talks and the key are secrets
const RECENT = 20; // turns of a talk whose texts are fetched at once
const COLUMNS = 256; // readings in the strip

// What is on the screen. `at` is where the next message goes on from: a turn, a talk that has none yet, or null for a
// new talk. `texts` holds what was said and answered in the turns seen so far.
const view = { model: null, state: null, at: null, turns: new Map(), texts: new Map(), running: null };

// ---- the server

class Failure extends Error {
  constructor(message, request) {
    super(request ? `${message} (request ${request})` : message);
  }
}

async function call(method, path, body, signal) {
  const headers = {};
  const key = byId("fields").elements.key.value.trim();
  if (key) headers["Authorization"] = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  if (answer.status === 401) panel("settings", true);
  const failure = new Failure(told?.error?.message ?? `The server answers ${answer.status}.`, answer.headers.get("x-request-id"));
  failure.status = answer.status;
  throw failure;
}

const get = async (path) => (await call("GET", path)).json();
const named = (kind, id) => `/v1/${kind}/${encodeURIComponent(id)}`;

// The data of a stream of server-sent events, one object each.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const frames = (rest + value).split(/\r?\n\r?\n/);
    rest = frames.pop();
    for (const frame of frames) {
      const data = frame.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length && data[0] !== "[DONE]") yield JSON.parse(data.join("\n"));
    }
  }
}

function show(error) {
  byId("error").textContent = error ? error.message : "";
}

// What changes the view is done one after the other, in the order in which it was asked for; what goes wrong is shown.
let last = Promise.resolve();
const inTurn = (handler) => () => {
  last = last.then(async () => {
    show(null);
    try {
      await handler();
    } catch (error) {
      if (error.name !== "AbortError") show(error);
    }
  });
};

// The server ends a reply in order when it is asked to; one that it has not begun yet is just left.
function stop() {
  const { id, abort } = view.running ?? {};
  if (id) call("POST", `${named("responses", id)}/cancel`).catch(() => abort.abort());
  else abort?.abort();
}

// The same for what leads elsewhere: a reply in the making is stopped.
const leaving = (handler) => () => {
  stop();
  inTurn(handler)();
};

// ---- the talk

function paragraph(kind, text) {
  const made = document.createElement("p");
  made.className = kind;
  made.textContent = text;
  return made;
}

// The end stays in sight for whoever has not scrolled up from it.
let following = true;

function follow(always = false) {
  const log = byId("log");
  if (always || following) log.scrollTop = log.scrollHeight;
}

function grow(node, text) {
  node.append(text); // a string becomes a text node
  follow();
}

// The turns that lead to `id`, the first first.
function path(id) {
  const found = [];
  for (let turn = view.turns.get(id); turn; turn = view.turns.get(turn.parent)) found.unshift(turn);
  return found;
}

const joined = (items, type) =>
  items.filter((item) => item.type === type).flatMap((item) => item.content ?? []).map((part) => part.text ?? "").join("");

async function texts(id) {
  if (!view.texts.has(id)) {
    const route = named("responses", id);
    const [answer, asked] = await Promise.all([get(route), get(`${route}/input_items?order=asc&limit=100`)]);
    const calls = answer.output.filter((item) => item.type === "function_call");
    view.texts.set(id, {
      said: joined(asked.data, "message") || asked.data.map((item) => item.output ?? "").join("\n"),
      thought: joined(answer.output, "reasoning"),
      reply: joined(answer.output, "message") + calls.map((item) => `${item.name}(${item.arguments})`).join("\n"),
    });
  }
  return view.texts.get(id);
}

async function drawTalk(all = false) {
  const turns = path(view.at);
  const recent = all ? turns : turns.slice(-RECENT);
  const found = await Promise.all(recent.map((turn) => texts(turn.id)));
  const nodes = found.flatMap(({ said, thought, reply }, i) => [
    paragraph("said", said),
    ...(thought ? [paragraph("thought", thought)] : []),
    paragraph("reply", reply),
    ...(recent[i].stop_reason === "cancelled" ? [paragraph("note", "stopped")] : []),
  ]);
  if (recent.length < turns.length) {
    const earlier = document.createElement("button");
    earlier.textContent = `Earlier turns (${turns.length - recent.length})`;
    earlier.onclick = inTurn(() => drawTalk(true));
    nodes.unshift(earlier);
  }
  byId("log").replaceChildren(...nodes);
  if (all) byId("log").scrollTop = 0;
  else follow(true);
}

// ---- the tree of turns

function choice(text, onclick) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = made.title = text;
  made.onclick = onclick;
  return made;
}

// Turns in drawing order with their depth, which grows only where a turn has more than one after it.
function drawn() {
  const after = Map.groupBy(view.turns.values(), (turn) => (view.turns.has(turn.parent) ? turn.parent : null));
  for (const turns of after.values()) turns.sort((a, b) => a.created - b.created);
  const order = [];
  const waiting = (after.get(null) ?? []).map((turn) => [0, turn]).reverse();
  while (waiting.length) {
    const [depth, turn] = waiting.pop();
    order.push([depth, turn]);
    const next = after.get(turn.id) ?? [];
    waiting.push(...next.map((later) => [depth + (next.length > 1), later]).reverse());
  }
  return order;
}

function drawTurns() {
  const onPath = new Set(path(view.at));
  const items = drawn().map(([depth, turn]) => {
    const button = choice(turn.said || "(nothing said)", leaving(() => stand(turn.id)));
    button.classList.toggle("path", onPath.has(turn));
    if (turn.id === view.at) button.setAttribute("aria-current", "true");
    const item = document.createElement("li");
    item.style.setProperty("--depth", Math.min(depth, 8));
    item.append(button);
    return item;
  });
  byId("turns").replaceChildren(...items);
  byId("turns-hint").hidden = items.length > 1;
}

function remember() {
  if (view.at) remembered.setItem("at", JSON.stringify([view.state, view.at]));
  else remembered.removeItem("at");
}

// Learn the turns of the talk that is open; `at` is where to stand, by default on its head.
async function enter(state, at = null, known = null) {
  known ??= await get(named("states", state));
  if (state !== view.state) view.texts.clear();
  view.state = state;
  view.turns = new Map(known.turns.map((turn) => [turn.id, turn]));
  view.at = view.turns.has(at) ? at : known.heads.main ?? state;
  remember();
  drawTurns();
  await Promise.all([drawTalk(), drawList()]);
}

async function stand(id) {
  view.at = id;
  remember();
  drawTurns();
  strip.clear();
  await drawTalk();
  panel("talks", false);
  byId("text").focus();
}

async function begin() {
  Object.assign(view, { state: null, at: null, turns: new Map(), texts: new Map() });
  remember();
  strip.clear();
  drawTurns();
  byId("log").replaceChildren();
  panel("talks", false);
  byId("text").focus();
  await drawList();
}

// ---- the list of talks

async function drawList(after = null) {
  const found = await get(`/v1/states?limit=20${after ? `&after=${encodeURIComponent(after)}` : ""}`);
  const items = found.data.map((talk) => {
    const title = talk.title || new Date(talk.created_at * 1000).toLocaleString();
    const button = choice(title, leaving(async () => {
      strip.clear();
      await enter(talk.id);
      panel("talks", false);
    }));
    if (talk.id === view.state) button.setAttribute("aria-current", "true");
    const remove = choice("×", inTurn(async () => {
      if (!confirm(`Delete the talk “${title}” and all its turns?`)) return;
      await call("DELETE", named("states", talk.id));
      await (talk.id === view.state ? begin() : drawList());
    }));
    remove.className = "delete";
    remove.title = "Delete";
    remove.setAttribute("aria-label", `Delete ${title}`);
    const item = document.createElement("li");
    item.append(button, remove);
    return item;
  });
  byId("list")[after ? "append" : "replaceChildren"](...items);
  byId("more").hidden = !found.has_more;
  byId("more").onclick = inTurn(() => drawList(found.last_id));
}

// ---- the strip: a column for each reading, a row for each layer

const strip = {
  columns: [],
  clear() {
    this.columns = [];
    this.paint();
    byId("speed").textContent = "";
  },
  push(layers) {
    this.columns.push(layers);
    if (this.columns.length > COLUMNS) this.columns.shift();
    this.paint();
  },
  paint() {
    byId("strip").hidden = !this.columns.length;
    if (!this.columns.length) return;
    const canvas = byId("heat");
    const rows = this.columns[0].length;
    Object.assign(canvas, { width: COLUMNS / 2 > this.columns.length ? COLUMNS / 2 : COLUMNS, height: rows });
    const moved = this.columns.flat().filter((value) => value > 0);
    const least = Math.min(...moved), most = Math.max(...moved);
    const picture = canvas.getContext("2d");
    this.columns.forEach((layers, x) =>
      layers.forEach((value, y) => {
        const part = value > 0 && most > least ? Math.log(value / least) / Math.log(most / least) : 0;
        picture.fillStyle = `hsl(${260 - 200 * part} 70% ${18 + 50 * part}%)`; // dark violet to bright yellow
        picture.fillRect(x, y, 1, 1);
      }));
    byId("range").textContent = moved.length ? `${least.toPrecision(2)} (dark) to ${most.toPrecision(2)}` : "";
  },
};

// ---- saying something

function request(text) {
  const body = { input: text, stream: true, stream_options: { include_state_delta: true } };
  for (const field of byId("fields").querySelectorAll("input[type=number]")) {
    if (field.value !== "") body[field.name] = Number(field.value);
  }
  const instructions = byId("fields").elements.instructions.value.trim();
  if (view.at) body.previous_response_id = view.at;
  else {
    body.model = byId("fields").elements.model.value || view.model;
    if (instructions) body.instructions = instructions;
  }
  return body;
}

async function say(text) {
  const running = { abort: new AbortController(), id: null };
  const thought = paragraph("thought", "");
  const reply = paragraph("reply", "");
  reply.setAttribute("aria-busy", "true");
  const said = paragraph("said", text);
  byId("log").append(said, reply);
  follow(true);
  const undo = () => {
    for (const node of [said, thought, reply]) node.remove();
    byId("text").value ||= text;
  };
  busy(running);
  try {
    const answer = await call("POST", "/v1/responses", request(text), running.abort.signal);
    for await (const event of events(answer)) {
      running.id = event.response?.id ?? running.id;
      if (event.type === "response.output_text.delta") {
        grow(reply, event.delta);
      } else if (/^response\.reasoning.*\.delta$/.test(event.type)) {
        if (!thought.isConnected) reply.before(thought);
        grow(thought, event.delta);
      } else if (event.type === "rookery.state_delta") {
        strip.push(event.layers);
        byId("speed").textContent = `${event.tokens_per_second.toFixed(1)} tokens/s`;
      } else if (event.type === "error" || event.type === "response.failed") {
        const why = event.message ?? event.error?.message ?? event.response?.error?.message ?? "The reply broke off.";
        throw new Failure(why, answer.headers.get("x-request-id"));
      }
    }
  } finally {
    reply.removeAttribute("aria-busy");
    busy(null);
    if (!(running.id && await settle(running.id))) undo();
  }
}

// Stand on the turn that a reply has become; false if it has become none: it was stopped before its first word.
async function settle(id) {
  const state = `state_${id.slice("resp_".length, -32)}`; // a turn's id is its talk's with its own behind it
  const known = await get(named("states", state)).catch((error) => {
    if (error.status !== 404) throw error;
  });
  if (!known?.turns.some((turn) => turn.id === id)) return false;
  await enter(state, id, known);
  return true;
}

function busy(running) {
  view.running = running;
  byId("send").hidden = Boolean(running);
  byId("stop").hidden = !running;
}

// ---- the page

function panel(name, shown) {
  byId(name).classList.toggle("shown", shown);
  byId(`show-${name}`).setAttribute("aria-expanded", shown);
}

function keepFields() {
  const form = byId("fields");
  const kept = JSON.parse(remembered.getItem("fields") ?? "{}");
  for (const field of form.elements) field.value = kept[field.name] ?? "";
  form.onsubmit = (event) => event.preventDefault();
  form.oninput = () => remembered.setItem("fields", JSON.stringify(Object.fromEntries(new FormData(form))));
}

// Where there is more than one model, those to choose from.
function offer(names) {
  const choice = byId("fields").elements.model;
  const kept = JSON.parse(remembered.getItem("fields") ?? "{}").model;
  choice.replaceChildren(...names.map((name) => new Option(name)));
  if (names.includes(kept)) choice.value = kept;
  byId("models").hidden = names.length < 2;
}

async function start() {
  const models = await get("/v1/models");
  view.model = models.data[0].id;
  byId("model").textContent = view.model;
  offer(models.data.map((each) => each.id));
  const [state, at] = JSON.parse(remembered.getItem("at") ?? "[]");
  if (!state) return drawList();
  await enter(state, at).catch((error) => {
    if (error.status === 404) return begin(); // it was deleted
    throw error;
  });
}

const send = inTurn(async () => {
  const text = byId("text").value.trim();
  if (!text) return;
  if (!view.model) await start();
  byId("text").value = "";
  await say(text);
});

byId("say").onsubmit = (event) => {
  event.preventDefault();
  if (!view.running) send();
};
byId("text").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("say").requestSubmit();
};
byId("log").onscroll = ({ target }) => {
  following = target.scrollHeight - target.scrollTop - target.clientHeight < 40;
};
new ResizeObserver(() => follow()).observe(byId("log"));
byId("stop").onclick = stop;
byId("new").onclick = leaving(begin);
for (const [name, other] of [["talks", "settings"], ["settings", "talks"]]) {
  byId(`show-${name}`).onclick = () => {
    panel(other, false);
    panel(name, !byId(name).classList.contains("shown"));
  };
}
byId("fields").elements.key.onchange = inTurn(start);
keepFields();
drawTurns();
strip.clear();
inTurn(start)();
