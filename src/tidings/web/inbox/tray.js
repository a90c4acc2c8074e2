/** Files on their way into a message: chosen, dropped or pasted, uploaded at once. */

import { el } from "./dom.js";
import { icon } from "./icons.js";
import { sizeText, t } from "./texts.js";

const BYTES_MAX = 25_000_000;
const FILES_MAX = 20;
const UNKNOWN_TYPE = "application/octet-stream";
const TYPE = /^[a-z0-9][a-z0-9!#$&^_.+-]*\/[a-z0-9][a-z0-9!#$&^_.+-]*$/;

/** A file under a type that the service takes: small letters, no parameters. */
function plain(file) {
  const type = file.type.split(";")[0].trim().toLowerCase();
  return new File([file], file.name || "file", { type: TYPE.test(type) ? type : UNKNOWN_TYPE });
}

export class Tray {
  #files = [];

  constructor(shell, onChange) {
    this.shell = shell;
    this.onChange = onChange;
    this.input = el("input", { type: "file", multiple: true, hidden: true, tabindex: "-1", "aria-hidden": "true" });
    this.input.addEventListener("change", () => {
      this.add(this.input.files);
      this.input.value = "";
    });
    this.button = el(
      "button",
      { type: "button", class: "attach", title: t("composer.attach"), "aria-label": t("composer.attach"), onclick: () => this.input.click() },
      icon("clip"),
    );
    this.list = el("ul", { class: "tray", role: "list" });
    this.element = el("div", {}, this.list, this.input);
  }

  get hasFiles() {
    return this.#files.some(({ blobId }) => blobId);
  }

  get isBusy() {
    return this.#files.some(({ blobId, failure }) => !blobId && !failure);
  }

  /** The ids of what was uploaded; the tray is empty then. */
  take() {
    const ids = this.#files.map(({ blobId }) => blobId).filter(Boolean);
    for (const file of [...this.#files]) this.#remove(file);
    return ids;
  }

  close() {
    for (const file of [...this.#files]) this.#remove(file);
  }

  add(files) {
    for (const file of [...files].slice(0, FILES_MAX - this.#files.length)) this.#upload(plain(file));
  }

  paste(event) {
    const files = event.clipboardData?.files ?? [];
    if (!files.length) return;
    event.preventDefault();
    this.add(files);
  }

  /** Files dropped anywhere on the conversation are attached, where one can write. */
  acceptDrops(conversation) {
    const canWrite = () => !conversation.composer.element.hidden;
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && canWrite();
    queueMicrotask(() => {
      const { element } = conversation;
      element.dataset.drop = t("composer.drop");
      element.addEventListener("dragover", (event) => {
        if (!hasFiles(event)) return;
        event.preventDefault();
        element.classList.add("dropping");
      });
      element.addEventListener("dragleave", (event) => {
        if (!element.contains(event.relatedTarget)) element.classList.remove("dropping");
      });
      element.addEventListener("drop", (event) => {
        element.classList.remove("dropping");
        if (!hasFiles(event)) return;
        event.preventDefault();
        this.add(event.dataTransfer.files);
      });
    });
  }

  async #upload(file) {
    const progress = el("progress", { max: "1", value: "0", "aria-label": file.name });
    const state = el("span", { class: "soft" }, sizeText(file.size));
    const remove = t("file.remove", { name: file.name });
    const isPicture = /^image\/(png|jpeg|gif|webp)$/.test(file.type);
    const address = isPicture ? URL.createObjectURL(file) : null;
    const item = { blobId: null, failure: null, address };
    item.element = el(
      "li",
      {},
      address ? el("img", { src: address, alt: "" }) : icon("file"),
      el("span", { class: "name" }, file.name),
      state, progress,
      el("button", { type: "button", title: remove, "aria-label": remove, onclick: () => this.#remove(item) }, icon("close")),
    );
    this.#files.push(item);
    this.list.append(item.element);
    this.onChange();
    try {
      if (file.size > BYTES_MAX) throw Object.assign(new Error(t("file.large")), { code: "too_large" });
      item.blobId = await this.shell.desk.tidings.upload(file, (share) => (progress.value = share));
    } catch (error) {
      if (!error.code && error.name !== "Unreachable") throw error;
      item.failure = error;
      item.element.classList.add("failed");
      state.textContent = error.code === "too_large" ? t("file.large") : t("file.failed");
    } finally {
      progress.remove();
      this.onChange();
    }
  }

  #remove(item) {
    this.#files = this.#files.filter((each) => each !== item);
    item.element.remove();
    if (item.address) URL.revokeObjectURL(item.address);
    this.onChange();
  }
}
