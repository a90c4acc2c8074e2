/* The widget's entrance: a classic script that loads the modules and keeps calls until they are. */
(() => {
  const script = document.currentScript;
  if (!script || window.tidings?.isWidget) return;
  const waiting = [...(window.tidings?.q ?? [])];
  let act = (...call) => void waiting.push(call);
  window.tidings = Object.assign((...call) => act(...call), { isWidget: true });
  const { key, jwt, locale } = script.dataset;
  const url = new URL(".", script.src).href;
  import(`${url}{assets}/widget/widget.js`)
    .then(({ start }) => {
      act = start({ url, key, jwt, locale });
      for (const call of waiting.splice(0)) act(...call);
    })
    .catch((error) => console.error("The chat could not be loaded.", error));
})();
