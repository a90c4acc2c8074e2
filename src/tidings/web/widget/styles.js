/** The widget's look, for a constructed sheet: no page's policy has to allow a style for it. */

export const STYLES = `
:host { all: initial !important; display: block !important; position: fixed !important;
  inset: auto 0 0 auto !important; width: 0 !important; height: 0 !important;
  z-index: 2147483647 !important; }
.all { --ground: #fff; --sunk: #f4f2ee; --line: #dfdbd3; --ink: #23211d; --soft: #67625a;
  --accent: #0b6b5d; --top: #0b6b5d; --on: #fff; --bad: #b3261e; color-scheme: light; color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans KR", sans-serif; }
@media (prefers-color-scheme: dark) { .all { --ground: #1f1e1b; --sunk: #2b2925; --line: #3d3a34;
  --ink: #ebe7df; --soft: #aaa499; --accent: #5cc7b2; --top: #114740; --on: #10221f; --bad: #f28b82; color-scheme: dark; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
button, textarea { font: inherit; color: inherit; margin: 0; }
button { cursor: pointer; border: 0; background: none; padding: 0; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
svg { display: block; width: 24px; height: 24px; fill: none; stroke: currentColor; stroke-width: 2;
  stroke-linecap: round; stroke-linejoin: round; }
.launcher { position: fixed; right: 20px; bottom: 20px; width: 56px; height: 56px; border-radius: 50%;
  background: var(--accent); color: var(--on); display: grid; place-items: center;
  box-shadow: 0 4px 16px #0004; }
.count { position: absolute; top: -4px; right: -4px; min-width: 22px; padding: 0 6px;
  border-radius: 11px; background: #b3261e; color: #fff; font: 600 13px/22px system-ui, sans-serif; text-align: center; }
.panel { position: fixed; right: 20px; bottom: 88px; width: min(384px, calc(100vw - 40px));
  height: min(620px, calc(100vh - 108px)); display: flex; flex-direction: column; overflow: hidden;
  background: var(--ground); border: 1px solid var(--line); border-radius: 16px; box-shadow: 0 12px 40px #0004; }
.top { display: flex; align-items: center; gap: 12px; padding: 12px 8px 12px 16px; background: var(--top);
  color: #fff; }
.top > div { flex: 1; min-width: 0; }
h2 { margin: 0; font-size: 16px; line-height: 1.3; font-weight: 650; }
.state { font-size: 13px; }
.icon { display: grid; place-items: center; width: 40px; height: 40px; flex: none; border-radius: 10px; }
.top :focus-visible { outline-color: currentColor; outline-offset: -3px; }
.log { flex: 1; overflow-y: auto; overscroll-behavior: contain; padding: 12px 16px; display: flex;
  flex-direction: column; gap: 4px; outline-offset: -3px; }
.welcome { margin: auto; text-align: center; max-width: 280px; color: var(--soft); }
.welcome b { display: block; color: var(--ink); font-size: 18px; margin-bottom: 6px; }
.day { align-self: center; font-size: 12px; color: var(--soft); margin: 10px 0 4px; }
.item { display: flex; flex-direction: column; align-items: flex-start; max-width: 84%; }
.item.first { margin-top: 8px; }
.mine { align-self: flex-end; align-items: flex-end; }
.who, .under { font-size: 12px; color: var(--soft); overflow-wrap: anywhere; }
.who { margin: 0 4px 2px; font-weight: 600; }
.under { margin: 2px 4px 0; display: flex; gap: 10px; }
.sent::before { content: "✓" / ""; }
.read::before { content: "✓✓" / ""; }
.bubble { padding: 8px 12px; border-radius: 16px 16px 16px 4px; background: var(--sunk); white-space: pre-wrap;
  overflow-wrap: anywhere; max-width: 100%; }
.mine .bubble { background: var(--accent); color: var(--on); border-radius: 16px 16px 4px; }
.gone { font-style: italic; opacity: .8; }
.bubble a { color: inherit; text-decoration: underline; }
.quote { border-left: 3px solid; padding-left: 8px; margin-bottom: 4px; font-size: 13px; opacity: .8;
  max-height: 40px; overflow: hidden; }
.file { display: block; text-align: left; text-decoration: underline; overflow-wrap: anywhere; }
canvas { display: block; max-width: 100%; max-height: 240px; border-radius: 10px; margin: 2px 0; }
.link { text-decoration: underline; font-size: 13px; align-self: center; }
.under .link { font-size: 12px; }
.bad { color: var(--bad); }
.typing { min-height: 22px; padding: 0 16px; font-size: 12px; color: var(--soft); white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; }
form { display: flex; align-items: flex-end; gap: 2px; padding: 8px; border-top: 1px solid var(--line); }
textarea { flex: 1; min-width: 0; resize: none; field-sizing: content; min-height: 40px;
  max-height: 120px; padding: 8px 12px;
  border: 1px solid var(--line); border-radius: 12px; background: var(--ground); font-size: 16px; line-height: 22px; }
textarea::placeholder { color: var(--soft); opacity: 1; }
textarea:focus { outline: 2px solid var(--accent); outline-offset: -1px; }
form .icon { color: var(--soft); }
form .send { color: var(--accent); }
@media (max-width: 480px) {
  .panel { inset: 0; width: auto; height: auto; border: 0; border-radius: 0; }
  .panel:not([hidden]) + .launcher { display: none; }
}`;
