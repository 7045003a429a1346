"use strict";
// Sends what stands in a form and shows the answer as it comes. It talks to this server only.

function requestOf(form) {
  let path = form.dataset.path;
  const headers = {};
  const query = new URLSearchParams();
  for (const input of form.querySelectorAll("input")) {
    if (input.dataset.in === "path") {
      path = path.replace(`{${input.name}}`, encodeURIComponent(input.value));
    } else if (input.value && input.dataset.in === "query") {
      query.set(input.name, input.value);
    } else if (input.value) {
      headers[input.name] = input.value;
    }
  }
  const body = form.querySelector("textarea")?.value;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (query.size) path += `?${query}`;
  return [path, { method: form.dataset.method, headers, body }];
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

async function show(response, status, text) {
  const told = [...response.headers].filter(([name]) => name.startsWith("x-") || name === "retry-after");
  status.textContent = [response.status, ...told.map((pair) => pair.join(": "))].join(" · ");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) text.append(part.value);
  text.textContent = indented(text.textContent);
}

for (const form of document.querySelectorAll(".try")) {
  const [send, stop] = form.querySelectorAll("button");
  const [status, text] = [form.querySelector("output"), form.querySelector("pre")];
  let running = null;
  stop.onclick = () => running?.abort();
  send.onclick = async () => {
    running = new AbortController();
    [send.disabled, stop.disabled, status.textContent, text.textContent] = [true, false, "…", ""];
    try {
      const [path, options] = requestOf(form);
      await show(await fetch(path, { ...options, signal: running.signal }), status, text);
    } catch (error) {
      status.textContent = error.name === "AbortError" ? "stopped" : String(error);
    }
    [send.disabled, stop.disabled] = [false, true];
  };
}
