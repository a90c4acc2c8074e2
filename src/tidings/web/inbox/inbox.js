/** The team's inbox: who it is, then the desk. */

import { connect, isSignedIn, Problem, Unreachable } from "../client/client.js";
import { forgetDrafts } from "./composer.js";
import { Desk } from "./desk.js";
import { el, kept } from "./dom.js";
import { Shell } from "./shell.js";
import { language, t } from "./texts.js";
import { forget, keepPage } from "./worker.js";

const PROFILE = "inbox";

document.documentElement.lang = language;
const theme = kept("tidings:inbox:theme");
if (theme) document.documentElement.dataset.theme = theme;

/** The token of a link, taken out of the address and the history at once. */
function tokenOfAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) history.replaceState(null, "", location.pathname + location.search);
  return token;
}

async function start(token) {
  let shell = null;
  let refusal = null;
  const onSignedOut = () => {
    refusal ??= token && !shell ? "entrance.refused" : "entrance.ended";
    shell?.close();
    shell = null;
    forget().catch(() => {}); // what the browser does not let go of is of no use without a session
    enter(refusal);
  };
  try {
    const options = { profile: PROFILE, onSignedOut, device: { name: "Inbox", platform: "browser" } };
    const tidings = await connect(token ? { ...options, token } : options);
    const me = await tidings.fetchMe();
    if (tidings.failure) return;
    if (me.role !== "manager" && me.role !== "admin") {
      refusal = "entrance.customer";
      await tidings.signOut();
      return;
    }
    forgetDrafts({ exceptOf: me.id });
    const desk = new Desk(tidings, me);
    await desk.restore();
    if (tidings.failure) return;
    shell = new Shell(desk);
    document.body.replaceChildren(shell.element);
    shell.start();
    (globalThis.requestIdleCallback ?? setTimeout)(keepPage);
  } catch (error) {
    if (error instanceof Unreachable) enter("entrance.unreachable");
    else if (!(error instanceof Problem)) throw error;
    else if (!refusal) enter(token ? "entrance.refused" : null);
  }
}

function enter(refusal) {
  document.title = "Tidings";
  const field = el("input", {
    id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true,
    placeholder: "ts_…", "aria-describedby": "refusal",
  });
  const button = el("button", { class: "main", type: "submit" }, t("entrance.go"));
  const form = el(
    "form",
    { class: "entrance" },
    el("h1", {}, "Tidings"),
    el("h2", {}, t("entrance.title")),
    el("p", {}, t("entrance.lead")),
    el("label", { for: "token" }, t("entrance.token")),
    el("div", { class: "fields" }, field, button),
    el("p", { id: "refusal", class: "bad", role: "alert" }, refusal && t(refusal)),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    button.disabled = true;
    start(field.value.trim());
  });
  document.body.replaceChildren(el("main", { class: "doorway" }, form));
  field.focus();
}

const token = tokenOfAddress();
if (token || isSignedIn({ profile: PROFILE })) start(token);
else enter(null);
