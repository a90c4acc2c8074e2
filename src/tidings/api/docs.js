// Draws the documentation from /openapi.json. The token is a field of this page and nothing else:
// it is never stored, and goes nowhere but into the Authorization header or the first frame.

const FRAMES_SHOWN_MAX = 200;
const SCHEMA_DEPTH_MAX = 6;
const SHOWN_HEADERS = ["tidings-cost", "ratelimit", "retry-after", "x-request-id", "allow"];

const byId = (id) => document.getElementById(id);
const token = () => byId("token").value.trim();
let api;

/** An element with properties and children; texts are texts, never markup. */
function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && typeof value !== "string") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Text with what stands between backticks as code. */
const phrase = (text) => text.replace(/\s+/g, " ").split("`").map((piece, place) =>
  place % 2 ? element("code", {}, piece) : piece);

/** Paragraphs between blank lines. */
const prose = (text) => element("div", { class: "text" },
  text.trim().split(/\n\s*\n/).map((paragraph) => element("p", {}, phrase(paragraph))));

const resolve = (schema) =>
  schema?.$ref ? api.components[schema.$ref.split("/")[2]][schema.$ref.split("/")[3]] : schema;
const nameOf = (schema) => schema?.$ref?.split("/").pop();
const operations = () =>
  Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, ...operation })));

/** A schema in few words, such as `string, 1 to 64 characters`. */
function typeOf(schema) {
  if (schema.$ref) return nameOf(schema);
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {})}`;
  if (schema.type === "object" && schema.additionalProperties)
    return `object of ${typeOf(schema.additionalProperties)}`;
  const words = [schema.type ?? "anything"];
  const { minimum, maximum, minLength, maxLength } = schema;
  const most = maximum === Number.MAX_SAFE_INTEGER ? undefined : maximum;
  if (minimum !== undefined && most !== undefined) words.push(`${minimum} to ${most}`);
  else if (minimum !== undefined) words.push(`at least ${minimum}`);
  if (maxLength !== undefined) words.push(`${minLength ?? 0} to ${maxLength} characters`);
  if (schema.default !== undefined && typeof schema.default !== "object")
    words.push(`${JSON.stringify(schema.default)} unless given`);
  return words.join(", ");
}

/** The first object schema inside, with what it is called. */
function inner(schema) {
  if (schema.anyOf) return schema.anyOf.map(inner).find(Boolean);
  if (schema.type === "array") return inner(schema.items ?? {});
  if (schema.type === "object" && schema.additionalProperties?.$ref)
    return inner(schema.additionalProperties);
  const found = resolve(schema);
  return found?.properties ? found : undefined;
}

function schemaTree(schema, depth = 0) {
  const required = new Set(schema.required ?? []);
  return element("ul", { class: "schema" }, Object.entries(schema.properties ?? {}).map(
    ([name, field]) => {
      const head = [
        element("code", {}, name), " ", element("span", { class: "type" }, typeOf(field)), " ",
        required.has(name) ? element("span", { class: "required" }, "required") : null,
      ];
      const text = field.description ? prose(field.description) : null;
      const below = depth < SCHEMA_DEPTH_MAX ? inner(field) : undefined;
      if (!below) return element("li", {}, ...head, text);
      const fold = element("details", {}, element("summary", {}, ...head), text);
      fold.addEventListener("toggle", () => fold.append(schemaTree(below, depth + 1)), { once: true });
      return element("li", {}, fold);
    }));
}

/** An example value that the schema accepts; only what is required, and a few telling fields. */
function example(schema, name = "") {
  if (schema.$ref) return example(resolve(schema), name);
  if (schema.default !== undefined && schema.default !== null) return schema.default;
  if (schema.enum) return schema.enum[0];
  if (schema.anyOf) return example(schema.anyOf.find((each) => each.type !== "null"), name);
  if (schema.type === "array") return [];
  if (schema.type === "integer" || schema.type === "number") return schema.minimum ?? 0;
  if (schema.type === "boolean") return true;
  if (schema.type === "string") {
    if (name === "client_id") return crypto.randomUUID?.() ?? `try-${Date.now()}`;
    return name === "text" ? "Hello!" : name === "name" ? "Ada" : "";
  }
  const required = new Set([...(schema.required ?? []), "client_id", "text"]);
  return Object.fromEntries(Object.entries(schema.properties ?? {})
    .filter(([field]) => required.has(field))
    .map(([field, value]) => [field, example(value, field)]));
}

function whoMayCall(operation) {
  const names = operation.security.map((each) => Object.keys(each)[0]);
  if (!operation.security.length) return "open";
  const words = [];
  if (names.includes(undefined)) words.push("anybody");
  if (names.includes("session")) words.push("session");
  if (names.includes("apiKey"))
    words.push(operation["x-scope"] ? `API key: ${operation["x-scope"]}` : "API key");
  if (names.includes("operatorKey")) words.push("operator");
  return words.join(" · ");
}

/** A path with its parameters marked. */
const pathParts = (path) => path.split(/({\w+})/).map((part) =>
  part.startsWith("{") ? element("span", { class: "parameter-name" }, part) : part);

function parameterTable(parameters) {
  return element("table", {}, element("tbody", {}, parameters.map((parameter) =>
    element("tr", {},
      element("td", {}, element("code", {}, parameter.name), " ",
        parameter.required ? element("span", { class: "required" }, "required") : null),
      element("td", {},
        element("div", { class: "type" }, `${parameter.in} · ${typeOf(parameter.schema)}`),
        parameter.description ? prose(parameter.description) : null)))));
}

function responseList(operation) {
  const good = [];
  const refused = [];
  for (const [status, given] of Object.entries(operation.responses)) {
    const response = resolve(given);
    const schema = Object.values(response.content ?? {})[0]?.schema;
    const isGood = /^[123]/.test(status);
    const row = element("tr", {},
      element("td", {}, element("span", { class: `status ${isGood ? "good" : "bad"}` }, status)),
      element("td", {}, prose(response.description),
        isGood && schema ? element("details", { class: "fold" },
          element("summary", {}, nameOf(schema) ?? typeOf(schema)),
          schemaTree(resolve(schema))) : null));
    (isGood ? good : refused).push(row);
  }
  return [
    element("table", {}, element("tbody", {}, good)),
    element("details", { class: "fold" }, element("summary", {}, "Problems it may answer with"),
      element("table", {}, element("tbody", {}, refused))),
  ];
}

function control(schema) {
  const choices = schema.enum ?? (schema.type === "boolean" ? [true, false] : null);
  if (!choices) return element("input", { spellcheck: false, autocomplete: "off" });
  return element("select", {}, element("option", { value: "" }, ""),
    choices.map((choice) => element("option", { value: String(choice) }, String(choice))));
}

/** The form that sends a real request to this service. */
function tryForm(operation) {
  if (operation.path === "/v1/ws") return socketForm();
  const fields = (operation.parameters ?? []).map((parameter) =>
    ({ parameter, input: control(parameter.schema) }));
  const content = operation.requestBody?.content;
  const type = content && Object.keys(content)[0];
  const body = content && element("textarea", { spellcheck: false, "aria-label": "Body" });
  if (body) body.value = JSON.stringify(example(Object.values(content)[0].schema), null, 2);
  const reply = element("div", { class: "reply", role: "status" });
  const send = element("button", { class: "main", type: "submit" }, "Send");
  const stop = element("button", { type: "button", hidden: true }, "Stop");

  const build = () => {
    let path = operation.path;
    const query = new URLSearchParams();
    const headers = {};
    for (const { parameter, input } of fields) {
      const value = input.value;
      if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(value));
      else if (value === "") continue;
      else if (parameter.in === "query") query.set(parameter.name, value);
      else headers[parameter.name] = value;
    }
    if (body) headers["Content-Type"] = type;
    const search = query.toString();
    return { url: path + (search ? `?${search}` : ""), headers };
  };

  const submit = async (event) => {
    event.preventDefault();
    const { url, headers } = build();
    if (token()) headers.Authorization = `Bearer ${token()}`;
    const aborter = new AbortController();
    stop.onclick = () => aborter.abort();
    stop.hidden = false;
    send.disabled = true;
    reply.replaceChildren(element("p", { class: "type" }, "Waiting for the reply …"));
    const started = performance.now();
    try {
      const response = await fetch(url, {
        method: operation.method.toUpperCase(), headers, body: body?.value, signal: aborter.signal,
      });
      await show(response, reply, performance.now() - started);
    } catch (error) {
      const text = error.name === "AbortError" ? "Stopped." : "The service can't be reached.";
      reply.append(element("p", { class: "type" }, text));
    } finally {
      stop.hidden = true;
      send.disabled = false;
    }
  };

  const curl = element("pre", {});
  const fold = element("details", { class: "fold" }, element("summary", {}, "As a curl command"), curl);
  const writeCurl = () => {
    const { url, headers } = build();
    const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
    const parts = [`curl -X ${operation.method.toUpperCase()} ${quoted(location.origin + url)}`];
    if (operation.security.length) parts.push('-H "Authorization: Bearer $TOKEN"');
    for (const [name, value] of Object.entries(headers)) parts.push(`-H ${quoted(`${name}: ${value}`)}`);
    if (body) parts.push(`-d ${quoted(body.value)}`);
    curl.textContent = parts.join(" \\\n  ");
  };
  fold.addEventListener("toggle", writeCurl);

  return element("form", { class: "try", onsubmit: submit, oninput: writeCurl },
    element("h4", {}, "Try it"),
    fields.length ? element("div", { class: "fields" }, fields.map(({ parameter, input }) => {
      input.required = parameter.in === "path";
      return element("label", {}, parameter.name, input);
    })) : null,
    body ? element("label", {}, `Body, ${type}`, body) : null,
    element("div", { class: "actions" }, send, stop),
    fold, reply);
}

/** A reply as it comes: JSON set in order, a stream as its text arrives. */
async function show(response, place, duration) {
  const isGood = response.status < 400;
  const headers = SHOWN_HEADERS.filter((name) => response.headers.has(name));
  const text = element("pre", { tabindex: 0 });
  place.replaceChildren(
    element("p", {}, element("span", { class: `status ${isGood ? "good" : "bad"}` },
      `${response.status} ${response.statusText}`), ` in ${duration.toFixed(0)} ms`),
    element("dl", {}, headers.flatMap((name) =>
      [element("dt", {}, name), element("dd", { class: "mono" }, response.headers.get(name))])),
    text);
  if (response.headers.get("content-type")?.startsWith("text/event-stream")) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const lines = [];
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      lines.push(part.value);
      if (lines.length > FRAMES_SHOWN_MAX) lines.shift();
      text.textContent = lines.join("");
      text.scrollTop = text.scrollHeight;
    }
    return;
  }
  const content = await response.text();
  if (!content) text.remove();
  try {
    text.textContent = JSON.stringify(JSON.parse(content), null, 2);
  } catch {
    text.textContent = content;
  }
}

/** A console for the WebSocket: what comes, what goes. */
function socketForm() {
  const log = element("pre", { tabindex: 0, hidden: true });
  const frame = element("textarea", { spellcheck: false, "aria-label": "Frame" });
  frame.value = JSON.stringify({ type: "ping", ref: 1 });
  const open = element("button", { class: "main", type: "button" }, "Connect");
  const send = element("button", { type: "submit", disabled: true }, "Send frame");
  const lines = [];
  let socket = null;
  const note = (mark, text) => {
    lines.push(`${mark} ${text}`);
    if (lines.length > FRAMES_SHOWN_MAX) lines.shift();
    log.hidden = false;
    log.textContent = lines.join("\n");
    log.scrollTop = log.scrollHeight;
  };
  open.addEventListener("click", () => {
    if (socket) return socket.close(1000);
    socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/v1/ws", "tidings.v1");
    open.textContent = "Disconnect";
    socket.onopen = () => {
      note("·", "connected; the token goes in the first frame");
      socket.send(JSON.stringify({ type: "auth", token: token() }));
      send.disabled = false;
    };
    socket.onmessage = (event) => note("↓", event.data);
    socket.onclose = (event) => {
      note("·", `closed ${event.code} ${event.reason}`);
      socket = null;
      open.textContent = "Connect";
      send.disabled = true;
    };
    return undefined;
  });
  const submit = (event) => {
    event.preventDefault();
    note("↑", frame.value);
    socket?.send(frame.value);
  };
  return element("form", { class: "try", onsubmit: submit },
    element("h4", {}, "Try it"), element("label", {}, "Frame", frame),
    element("div", { class: "actions" }, open, send), log);
}

function endpointCard(operation) {
  const card = element("details", { class: "endpoint", id: operation.operationId },
    element("summary", {},
      element("span", { class: `method ${operation.method}` }, operation.method.toUpperCase()),
      element("h3", {}, pathParts(operation.path)),
      element("span", { class: "who" }, whoMayCall(operation)),
      element("p", {}, phrase(operation.summary))));
  card.addEventListener("toggle", () => card.append(details(operation)), { once: true });
  return card;
}

function details(operation) {
  const content = operation.requestBody?.content;
  const body = content && Object.values(content)[0].schema;
  return element("div", {},
    operation.description ? prose(operation.description) : null,
    operation.parameters ? [element("h4", {}, "Parameters"), parameterTable(operation.parameters)] : null,
    body ? [element("h4", {}, `Body: ${nameOf(body)}`),
      prose(resolve(body).description ?? ""), schemaTree(resolve(body))] : null,
    element("h4", {}, "Replies"), responseList(operation),
    tryForm(operation));
}

function overview() {
  const facts = [
    ["Who is calling", "`Authorization: Bearer` with a session's token or an API key. Each endpoint says which it takes."],
    ["Exactly once", "A message with the same `client_id` again is the same message."],
    ["Price", "Each reply says what it cost in `Tidings-Cost`, in DynamoDB units, and in `Tidings-Cost-Source` who knows."],
    ["Limits", "`RateLimit` tells what is left; past it the answer is 429 with `Retry-After`."],
  ];
  return [
    element("h1", {}, api.info.title),
    element("div", { class: "lead" }, prose(api.info.description)),
    element("ul", { class: "facts" }, facts.map(([head, text]) =>
      element("li", {}, element("b", {}, head), ...prose(text).children))),
    element("p", {}, element("a", { href: "/openapi.json" }, "OpenAPI 3.1 document")),
  ];
}

function problemSection() {
  const rows = Object.entries(api.components.responses).map(([code, response]) =>
    element("tr", { id: `problem-${code}` },
      element("td", {}, element("code", {}, code)),
      element("td", {}, prose(response.description.replace(/ \(`\w+`\)$/, "")))));
  return element("section", { class: "section", id: "problems" }, element("h2", {}, "Problems"),
    element("p", {}, "Errors are application/problem+json (RFC 9457). What to act on is the code."),
    element("table", {}, element("tbody", {}, rows)));
}

function draw() {
  const all = operations();
  const groups = api.tags.map((tag) =>
    ({ ...tag, operations: all.filter((operation) => operation.tags[0] === tag.name) }));
  byId("content").replaceChildren(
    ...overview(),
    ...groups.map((group) => element("section", { class: "section" },
      element("h2", {}, group.name), prose(group.description), group.operations.map(endpointCard))),
    problemSection());
  byId("index").replaceChildren(...groups.map((group) => element("div", { class: "group" },
    element("h2", {}, group.name),
    element("ul", {}, group.operations.map((operation) => element("li", {},
      element("a", { href: `#${operation.operationId}`, title: `${operation.method} ${operation.path}` },
        element("span", { class: `method ${operation.method}` }, operation.method.toUpperCase()),
        element("span", {}, phrase(operation.summary)))))))));
}

function openTarget() {
  const target = byId(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target instanceof HTMLDetailsElement) target.open = true;
  target.scrollIntoView();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === location.hash) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

function filter(event) {
  const wanted = event.target.value.trim().toLowerCase();
  for (const group of document.querySelectorAll("nav .group")) {
    let isAnyShown = false;
    for (const item of group.querySelectorAll("li")) {
      const link = item.firstElementChild;
      item.hidden = !`${link.title} ${link.textContent}`.toLowerCase().includes(wanted);
      isAnyShown ||= !item.hidden;
    }
    group.hidden = !isAnyShown;
  }
}

byId("credential").addEventListener("submit", (event) => event.preventDefault());
byId("filter").addEventListener("input", filter);
addEventListener("hashchange", openTarget);

try {
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(response.statusText);
  api = await response.json();
  draw();
  openTarget();
} catch {
  byId("state").textContent = "The description of this service can't be read just now.";
}
