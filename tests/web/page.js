// The smallest page that shows an inbox and one room, for the tests to look at.

import { connect } from "/client.js";

const draw = (list, texts) =>
  list.replaceChildren(
    ...texts.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
  );

window.start = async (options) => {
  window.told = [];
  window.ends = [];
  const tidings = await connect({ ...options, onSignedOut: (problem) => ends.push(problem.code) });
  window.tidings = tidings;
  tidings.on("entry", (entry) => told.push(`${entry.room_id} ${entry.seq}`));
  const drawRooms = () => {
    const named = ({ row }) => [row.title, ...row.with.map(({ name }) => name), row.preview];
    draw(document.querySelector("#rooms"), tidings.rooms.map((room) => named(room).join(" ")));
  };
  tidings.on("rooms", drawRooms);
  drawRooms();
};

window.look = (roomId, options) => {
  window.view?.close();
  window.view = tidings.view(roomId, options);
  const drawLog = () => {
    draw(document.querySelector("#log"), view.entries.map(({ text, type }) => text ?? type));
  };
  view.subscribe(drawLog);
};
