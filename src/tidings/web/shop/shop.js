/* The tag that any site has, with the key that stands behind the page's address. */
const key = location.hash.slice(1);
document.getElementById("missing").hidden = key !== "";
if (key) {
  const script = document.createElement("script");
  script.src = "widget.js";
  script.dataset.key = key;
  document.head.append(script);
}
