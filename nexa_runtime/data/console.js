"use strict";
// The console: shows what /admin/live says while the page is looked at, loads and unloads models, and tries a chat.
// It talks to this server only. The admin key is kept in this tab (sessionStorage) and nowhere else.

const $ = (id) => document.getElementById(id);
const KEY = "nexa-admin-key";
const SECONDS = 120; // that the chart shows
const SMOOTH = 0.4; // of what is new in a rate

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  if (text !== "") made.textContent = text;
  if (className) made.className = className;
  return made;
}

const number = (value) => (value >= 9999.5 ? Math.round(value).toLocaleString("en") : String(Math.round(value * 10) / 10));
const bytes = (value) => (value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(1)} GiB` : `${Math.round(value / 2 ** 20)} MiB`);
const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "–");

function duration(seconds) {
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  return days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

// What the server says.

const isSendable = (text) => /^[\x20-\x7e]*$/.test(text); // in a header

const adminHeaders = () => {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
};

async function refusal(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

// Rates, from one snapshot to the next.

let last = null;
let history = [];
const rates = new Map();

function rate(name, total, seconds) {
  const known = rates.get(name);
  const now = known === undefined || seconds <= 0 ? 0 : Math.max(total - known.total, 0) / seconds;
  const smooth = known === undefined ? 0 : known.smooth + SMOOTH * (now - known.smooth);
  rates.set(name, { total, smooth, now });
  return smooth < 0.05 ? 0 : smooth;
}

// What is shown.

function say(text, isGood) {
  $("state").textContent = text;
  $("state").className = isGood ? "good" : "bad";
}

function tiles(entries) {
  $("tiles").replaceChildren(
    ...entries.map(([name, value, more]) => {
      const tile = document.createElement("div");
      const shown = element("dd", value);
      if (more) shown.append(" ", element("small", more));
      tile.append(element("dt", name), shown);
      return tile;
    }),
  );
}

function chart() {
  const top = Math.max(10, ...history.flat());
  const line = (index, className) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    const first = SECONDS - history.length;
    made.setAttribute("class", className);
    made.setAttribute("points", history.map((one, at) => `${((first + at) * 600) / (SECONDS - 1)},${88 - (84 * one[index]) / top}`).join(" "));
    return made;
  };
  $("chart").replaceChildren(line(1, "prompts"), line(0, "answers"));
  $("chart").setAttribute("aria-label", `Tokens a second in two minutes, ${Math.round(top)} at most`);
}

function slots(engines) {
  $("slots").replaceChildren(
    ...engines.map((one) => {
      const row = element("div", "", "row");
      for (let at = 0; at < one.slots; at++) row.append(element("i", "", at < one.running ? "slot on" : "slot"));
      const step = one.steps_per_s ? `, ${number(one.rows_per_step)} rows a step, ${number(one.steps_per_s)} steps a second` : "";
      const box = document.createElement("div");
      box.append(row, element("p", `${one.name}: ${one.running} of ${one.slots} run, ${one.waiting} wait${step}`));
      return box;
    }),
  );
}

function tenantRow(tenant, share) {
  const { usage } = tenant;
  const row = document.createElement("tr");
  const bar = element("div", "", "bar");
  const fill = document.createElement("i");
  fill.style.width = `${Math.round(100 * share)}%`;
  bar.append(fill);
  bar.title = percent(share, 1);
  const shareCell = document.createElement("td");
  shareCell.append(bar);
  const cell = (text) => element("td", text);
  row.append(
    cell(tenant.tenant_id), cell(tenant.running), cell(tenant.queued), cell(number(tenant.tokens_per_s)), shareCell,
    cell(percent(usage.cached_tokens, usage.prompt_tokens)), cell(number(tenant.cells)),
    cell(number(usage.requests)), cell(number(usage.refused)),
  );
  return row;
}

function tenants(list) {
  const work = list.reduce((sum, one) => sum + one.work_per_s, 0);
  const inOrder = list.toSorted((one, other) => one.tenant_id.localeCompare(other.tenant_id));
  $("tenants").replaceChildren(...inOrder.map((one) => tenantRow(one, work ? one.work_per_s / work : 0)));
}

let shownModels = "";

function models(list, memory) {
  $("memory").textContent = `${bytes(memory.used_bytes)} of ${bytes(memory.budget_bytes)} for models are used.`;
  const text = JSON.stringify(list.map((one) => [one.name, one.state, one.leases, one.memory_bytes, one.failure]));
  if (text === shownModels) return; // so that the keyboard stays where it is
  shownModels = text;
  const focused = document.activeElement?.dataset?.model;
  $("models").replaceChildren(
    ...list.map((one) => {
      const item = document.createElement("li");
      const isHeld = one.state === "loaded" || one.state === "draining";
      const isPinned = isHeld && one.is_default;
      const about = [isPinned ? "loaded, as the default" : one.state, bytes(one.memory_bytes), ...(isHeld ? [`${one.leases} requests`] : []), ...(one.failure ? [one.failure] : [])];
      const button = element("button", isHeld ? "Unload" : "Load");
      button.type = "button";
      button.dataset.model = one.name;
      button.setAttribute("aria-label", `${button.textContent} ${one.name}`);
      const isBusy = one.state === "loading" || one.state === "draining";
      button.setAttribute("aria-disabled", isBusy); // not disabled: that would lose the focus
      button.onclick = () => isBusy || change(one.name, isHeld ? "unload" : "load");
      item.append(element("b", one.name), element("span", about.join(" · "), one.failure ? "failed" : ""));
      if (!isPinned) item.append(button);
      return item;
    }),
  );
  const chosen = $("try-model").value;
  $("try-model").replaceChildren(...list.map((one) => element("option", one.name)));
  if (list.some((one) => one.name === chosen)) $("try-model").value = chosen;
  if (focused) [...$("models").querySelectorAll("button")].find((one) => one.dataset.model === focused)?.focus();
}

async function change(name, action) {
  $("model-news").textContent = `${action === "load" ? "Loading" : "Unloading"} ${name}…`;
  try {
    const path = `/admin/models/${encodeURIComponent(name).replaceAll("%2F", "/")}/${action}`;
    const response = await fetch(path, { method: "POST", headers: adminHeaders() });
    $("model-news").textContent = response.ok ? `${name} is ${action}ed.` : await refusal(response);
  } catch (error) {
    $("model-news").textContent = String(error);
  }
}

function show(live) {
  const seconds = last === null ? 0 : live.uptime_s - last.uptime_s;
  const sum = (field) => live.engines.reduce((total, one) => total + one[field], 0);
  for (const one of live.engines) {
    one.steps_per_s = rate(`steps ${one.name}`, one.num_steps, seconds);
    const rows = rate(`rows ${one.name}`, one.num_decode_rows + one.num_prefill_rows, seconds);
    one.rows_per_step = one.steps_per_s ? rows / one.steps_per_s : 0;
  }
  for (const one of live.tenants) {
    one.tokens_per_s = rate(`tokens ${one.tenant_id}`, one.generated_tokens, seconds);
    one.work_per_s = rate(`work ${one.tenant_id}`, one.virtual_time * one.weight, seconds);
  }
  const answers = rate("answers", sum("num_decode_rows"), seconds);
  const prompts = rate("prompts", sum("num_prefill_rows"), seconds);
  if (seconds > 0) history = [...history, [rates.get("answers").now, rates.get("prompts").now]].slice(-SECONDS);
  say(`${live.is_ready ? "ready" : live.reason} · ${live.version} · up ${duration(live.uptime_s)}`, live.is_ready);
  tiles([
    ["answers", number(answers), "tokens/s"],
    ["prompts", number(prompts), "tokens/s"],
    ["running", number(sum("running")), `of ${sum("slots")} slots`],
    ["waiting", number(sum("waiting"))],
    ["open requests", number(live.open_requests)],
    ["KV cells", percent(sum("used_cells"), sum("kv_cells")), `of ${number(sum("kv_cells"))}`],
    ["tenants", number(live.num_tenants)],
  ]);
  chart();
  slots(live.engines);
  tenants(live.tenants);
  models(live.models, live.memory);
  last = live;
}

// While the page is looked at, one stream; none while it is hidden.

let watching = null;

function ask(message) {
  $("main").hidden = true;
  $("gate").hidden = false;
  $("refusal").textContent = message;
  say("a key is needed", false);
  $("key").focus();
}

async function watch() {
  if (watching !== null || document.hidden) return;
  watching = new AbortController();
  const { signal } = watching;
  try {
    const response = await fetch("/admin/live", { headers: adminHeaders(), signal });
    if (response.status === 401 || response.status === 403) {
      const hadKey = sessionStorage.getItem(KEY) !== null;
      sessionStorage.removeItem(KEY);
      watching = null;
      ask(hadKey ? await refusal(response) : "");
      return;
    }
    if (!response.ok) throw new Error(await refusal(response));
    [$("gate").hidden, $("main").hidden, $("forget").hidden] = [true, false, sessionStorage.getItem(KEY) === null];
    last = null;
    for await (const data of events(response)) show(JSON.parse(data));
    throw new Error("the server has ended the stream");
  } catch (error) {
    if (signal.aborted) return;
    say(`no connection: ${error.message}; trying again`, false);
    watching = null;
    setTimeout(watch, 2000);
  }
}

function rest() {
  watching?.abort();
  watching = null;
}

document.addEventListener("visibilitychange", () => (document.hidden ? rest() : watch()));

$("gate").onsubmit = (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  $("key").value = "";
  if (!isSendable(key)) {
    $("refusal").textContent = "A key has letters, digits and signs of ASCII only.";
    return;
  }
  sessionStorage.setItem(KEY, key);
  watch();
};

$("forget").onclick = () => {
  sessionStorage.removeItem(KEY);
  rest();
  ask("");
};

$("theme").onclick = () => {
  const { dataset } = document.documentElement;
  const isDark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = isDark ? "light" : "dark";
};

// A chat to try.

let trying = null;

async function tryChat() {
  const headers = { "Content-Type": "application/json" };
  if ($("try-key").value) headers.Authorization = `Bearer ${$("try-key").value}`;
  if ($("try-tenant").value) headers["X-Tenant-Id"] = $("try-tenant").value;
  const body = {
    model: $("try-model").value || undefined,
    messages: [{ role: "user", content: $("try-text").value }],
    stream: true,
    stream_options: { include_usage: true },
  };
  if (!isSendable($("try-key").value + $("try-tenant").value)) throw new Error("Tenant and key are in ASCII.");
  const start = performance.now();
  const response = await fetch("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal: trying.signal });
  if (!response.ok) throw new Error(await refusal(response));
  let first = null;
  let usage = null;
  for await (const data of events(response)) {
    if (data === "[DONE]") break;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    usage = event.usage ?? usage;
    const delta = event.choices?.[0]?.delta ?? {};
    const text = (delta.reasoning_content ?? "") + (delta.content ?? "");
    if (text) first ??= performance.now() - start;
    $("answer").append(text);
  }
  const seconds = (performance.now() - start) / 1000;
  const told = usage ? `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ` : "";
  return `${told}first after ${Math.round(first ?? 0)} ms, all after ${seconds.toFixed(2)} s`;
}

$("try").onsubmit = async (event) => {
  event.preventDefault();
  trying?.abort();
  trying = new AbortController();
  [$("send").disabled, $("stop").disabled, $("answer").textContent, $("try-state").value] = [true, false, "", "…"];
  try {
    $("try-state").value = await tryChat();
  } catch (error) {
    $("try-state").value = error.name === "AbortError" ? "stopped" : error.message;
  }
  [$("send").disabled, $("stop").disabled] = [false, true];
};

$("stop").onclick = () => trying?.abort();
$("try-text").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("try").requestSubmit();
};

watch();
