// Labels and groups that users give to nodes. Labels and groups are part of the page's content, so
// that "Save page" keeps them, and `Graph.with_labels` and `eap view --labels` can read them.

const noteOf = (n) => ({ label: labels[component(n)] ?? "", group: groups[component(n)] ?? "" });
const groupNames = () => [...new Set(Object.values(groups))].sort();
// A letter in addition to the colour, for readers who cannot distinguish the colours.
const markOf = (group) => String.fromCharCode(65 + (groupNames().indexOf(group) % 26));
const N_COLOURS = 6;
const groupColour = (group) => `var(--group${groupNames().indexOf(group) % N_COLOURS})`;

// Label and group badge of a node, drawn above all boxes.
const drawNote = (n, x, y) => {
  const { label, group } = noteOf(n), radius = between(4, pitch.tall * 0.24, 7);
  const note = make("g", { transform: `translate(${x} ${y})` });
  if (label) {
    const most = Math.max(8, Math.floor((2 * pitch.column) / 6));
    note.append(make("text", { class: "label", y: -pitch.tall / 2 - (group ? radius : 0) - 3 },
      label.length > most ? `${label.slice(0, most - 1)}…` : label));
  }
  if (group) {
    const badge = make("g", { class: "badge",
      transform: `translate(${-pitch.wide / 2} ${-pitch.tall / 2})` });
    badge.append(make("circle", { r: radius, style: `fill:${groupColour(group)}` }),
      make("text", { y: radius * 0.55, style: `font-size:${(radius * 1.5).toFixed(1)}px` },
        markOf(group)));
    note.append(badge);
  }
  find("notes").append(note);
};

const listGroups = () => {
  find("group-names").replaceChildren(...groupNames().map((value) => tag("option", { value })));
  const list = find("groups");
  list.hidden = !groupNames().length;
  list.replaceChildren("Groups", ...groupNames().map((group) => {
    const mark = tag("span", { className: "mark", textContent: markOf(group) });
    mark.style.background = groupColour(group);
    const button = tag("button", { type: "button" }, mark, group);
    button.setAttribute("aria-pressed", String(state.group === group));
    button.addEventListener("click", () => {
      state.group = state.group === group ? null : group;
      if (state.node !== null) keep(state.node);
      listGroups();
      draw();
      fillTable();
    });
    return button;
  }));
};

// The panel for the label and the group of the selected node.
const showNote = () => {
  find("note").hidden = state.node === null;
  if (state.node === null) return;
  const { label, group } = noteOf(state.node);
  find("note-name").textContent = nodes[state.node];
  find("label").value = label;
  find("group").value = group;
};

let isUnsaved = false;
const takeNote = () => {
  const name = component(state.node);
  for (const [values, field] of [[labels, "label"], [groups, "group"]]) {
    const value = find(field).value.trim();
    if (value) values[name] = value;
    else delete values[name];
  }
  isUnsaved = true;
  find("save-page").textContent = "Save page*";
  if (!groupNames().includes(state.group)) state.group = null;
  listGroups();
  drawBoxes();
};

const listenToNotes = () => {
  for (const field of ["label", "group"]) {
    find(field).addEventListener("change", takeNote);
    find(field).addEventListener("keydown", (event) => {
      if (event.key === "Enter") event.target.blur();
      event.stopPropagation();
    });
  }
  // Warn before unsaved labels are lost.
  addEventListener("beforeunload", (event) => { if (isUnsaved) event.preventDefault(); });
};
