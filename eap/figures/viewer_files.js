// Saving the picture, the rows, and the page with its labels; and the address, which keeps the
// selection when the page is reloaded.

const fileName = (suffix) =>
  `${content.title.replace(/[^\w.-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "circuit"}`
  + `.${suffix}`;

const download = (blob, name) => {
  const link = tag("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

// ---- the picture -----------------------------------------------------------------------------

const STYLES = ["fill", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray",
  "stroke-linejoin", "opacity", "font-size", "font-weight", "text-anchor", "paint-order"];

// Copy an element with its styles inlined, because other programs have no style sheet.
const plain = (element) => {
  if (element.getAttribute("display") === "none" || element.hasAttribute("hidden")) return null;
  const copy = make(element.tagName);
  for (const name of ["d", "x", "y", "width", "height", "rx", "r", "transform", "data-node",
    "data-edge"]) {
    if (element.hasAttribute(name)) copy.setAttribute(name, element.getAttribute(name));
  }
  const looks = getComputedStyle(element);
  for (const name of STYLES) {
    const value = looks.getPropertyValue(name);
    const isText = /^(font|text|paint)/.test(name);
    if (isText !== (element.tagName === "text") && isText) continue;
    if (element.tagName !== "g" && value && value !== "none" && value !== "normal") {
      copy.setAttribute(name, value);
    } else if (name === "fill" && value === "none") copy.setAttribute(name, value);
  }
  if (element.tagName === "text") copy.textContent = element.textContent;
  else copy.append(...[...element.children].map(plain).filter(Boolean));
  return copy;
};

const legendOf = (width) => {
  const group = make("g");
  let x = 8, y = 16;
  for (const item of find("legend").querySelectorAll("li")) {
    const text = item.textContent.trim(), long = 44 + text.length * 6.3;
    if (x > 8 && x + long > width) [x, y] = [8, y + 18];
    const line = item.querySelector("path");
    if (line) {
      const copy = plain(line);
      copy.setAttribute("transform", `translate(${x} ${y - 8})`);
      group.append(copy);
    }
    group.append(make("text", { x: x + (line ? 40 : 0), y, "font-size": 11.5,
      fill: getComputedStyle(item).color }, text));
    x += long + (line ? 6 : -30);
  }
  return { group, height: y + 10 };
};

// The whole drawing, not only the visible part, with title and legend.
const picture = () => {
  const { width, height } = extent, looks = getComputedStyle(document.body);
  const wide = Math.max(width, 420);
  const lines = find("status").textContent.split("; ").reduce((rows, part) => {
    const joined = rows.length ? `${rows.at(-1)}; ${part}` : part;
    return rows.length && joined.length * 6 < wide ? [...rows.slice(0, -1), joined]
      : [...rows, part];
  }, []);
  const legend = legendOf(wide), top = 36 + 16 * lines.length;
  const all = top + height + legend.height;
  const svg = make("svg", { xmlns: "http://www.w3.org/2000/svg", width: wide, height: all,
    viewBox: `0 0 ${wide} ${all}`, "font-family": "system-ui, sans-serif" });
  svg.append(make("title", {}, content.title));
  svg.append(make("rect", { width: "100%", height: "100%", fill: looks.backgroundColor }));
  svg.append(make("text", { x: 8, y: 22, "font-size": 16, "font-weight": 600, fill: looks.color },
    content.title));
  svg.append(...lines.map((line, i) => make("text", { x: 8, y: 41 + 16 * i, "font-size": 11.5,
    fill: getComputedStyle(find("status")).color }, line)));
  const inner = make("g", { transform: `translate(${(wide - width) / 2} ${top})` });
  inner.append(...["labels", "edges", "nodes", "notes"].map((id) => plain(find(id))));
  legend.group.setAttribute("transform", `translate(0 ${top + height})`);
  svg.append(inner, legend.group);
  return { svg, wide, all };
};
const asText = (svg) => new XMLSerializer().serializeToString(svg);

const savePng = () => {
  const { svg, wide, all } = picture();
  const image = new Image();
  image.addEventListener("load", () => {
    const zoom = Math.min(3, 8000 / Math.max(wide, all));
    const canvas = tag("canvas", { width: Math.round(wide * zoom), height: Math.round(all * zoom) });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => download(blob, fileName("png")));
  });
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(asText(svg))}`;
};

// ---- rows and page ---------------------------------------------------------------------------

const saveRows = () => {
  const head = ["edge", ...circuits.flatMap((c) => {
    const of = comparing ? ` ${c.name}` : "";
    return [`score${of}`, `standard error${of}`, `kind${of}`];
  }), ...(comparing ? ["in"] : [])];
  const rows = inOrder().map((e) => [names[e], ...circuits.flatMap((c) =>
    [c.score[e], c.error?.[e], exactness(c, e)]), ...(comparing ? [membership(e)] : [])]);
  const cell = (value) => (/[",\n]/.test(value ?? "") ? `"${value.replaceAll('"', '""')}"`
    : value ?? "");
  const text = [head, ...rows].map((row) => row.map(cell).join(",")).join("\n");
  download(new Blob([`${text}\n`], { type: "text/csv" }), fileName("csv"));
};

const savePage = () => {
  const element = document.getElementById("content");
  const data = JSON.stringify(content).replaceAll("<", "\\u003c");
  const text = source.replace(element.textContent, () => data);
  download(new Blob([`<!DOCTYPE html>\n${text}\n`], { type: "text/html" }), fileName("html"));
  isUnsaved = false;
  find("save-page").textContent = "Save page";
};

const listenToFiles = () => {
  find("save-svg").addEventListener("click", () =>
    download(new Blob([asText(picture().svg)], { type: "image/svg+xml" }), fileName("svg")));
  find("save-png").addEventListener("click", savePng);
  find("save-rows").addEventListener("click", saveRows);
  find("save-page").addEventListener("click", savePage);
  find("print").addEventListener("click", () => print());
};

// ---- the address -----------------------------------------------------------------------------

const writeAddress = () => {
  const values = new URLSearchParams();
  values.set("size", state.position === null ? "given" : sizes[state.position]);
  if (state.node !== null) values.set("node", nodes[state.node]);
  if (state.query.length) values.set("search", state.query.join(" "));
  if (state.members.size < 3) values.set("in", [...state.members].join("."));
  if (state.side) values.set("side", 1);
  try {
    history.replaceState(null, "", `#${values}`);
  } catch { /* a page inside another has no address of its own */ }
};

const readAddress = () => {
  const values = new URLSearchParams(location.hash.slice(1));
  const size = values.get("size");
  const position = positions.findIndex((p) => (p === null ? "given" : String(sizes[p])) === size);
  if (position >= 0) state.position = positions[position];
  const node = nodes.indexOf(values.get("node"));
  if (boxes.has(node)) state.node = node;
  state.query = (values.get("search") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  if (comparing && values.has("in")) {
    state.members = new Set(values.get("in").split(".").map(Number).filter((n) => n > 0 && n < 4));
  }
  state.side = comparing && values.has("side");
};
