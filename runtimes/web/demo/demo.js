// The demo page: ?model=URL opens another model than models/tiny.onnx, ?backend=wasm|webgpu names the back end; without it
// <html data-backend> does, where the page was built without the files of one.
import { Restorer } from "../src/index.js";

const $ = (id) => document.getElementById(id);
const show = (id, on) => ($(id).hidden = !on);
const MOST_ROWS = 4;
const query = new URLSearchParams(location.search);

let restorer; // a promise: opened with the first picture, kept for the next ones
let running = Promise.resolve(); // ends with the photo that is being worked on
let abort; // stops it
let latest = 0; // counts the files that were given
let name = "photo";
let given; // the file that is shown: restored again where another choice of what to mend is made
const strength = () => $("strength").valueAsNumber / 100;
const numbers = () =>
  Object.fromEntries([...$("numbers").querySelectorAll("input")].map(({ name, valueAsNumber }) => [name, valueAsNumber]));
const ticked = () => [...$("families").querySelectorAll("input:checked")].map(({ value }) => value);

const fail = (error) => {
  $("error").textContent = `This did not work: ${error.message}`;
  show("error", true);
};

function opened() {
  const backend = query.get("backend") ?? document.documentElement.dataset.backend ?? "auto";
  restorer ??= Restorer.open(query.get("model") ?? "models/tiny.onnx", { backend });
  restorer.catch(() => (restorer = undefined)); // the next picture tries again
  return restorer;
}

// The page touches no pixels: a canvas of this kind only shows a bitmap, and the worker reads and writes them.
const put = (id, bitmap) => {
  Object.assign($(id), { width: bitmap.width, height: bitmap.height });
  $(id).getContext("bitmaprenderer").transferFromImageBitmap(bitmap);
};

/** The photo as a bitmap for the worker and as one to show. Both are decoded off this thread. */
async function decode(file) {
  const [image, shown] = await Promise.all([createImageBitmap(file), createImageBitmap(file)]).catch(() => {
    throw new Error(`${file.name || "the file"} is not a picture that this browser can read`);
  });
  return { image, shown, name: (file.name || "photo").replace(/\.[^.]*$/, "") };
}

/** Restores FILE instead of what is shown or worked on; if it is no picture, that stays. */
async function take(file) {
  const mine = ++latest;
  const photo = await decode(file).catch(fail);
  if (!photo || mine !== latest) return;
  given = file;
  abort?.abort();
  const { signal } = (abort = new AbortController());
  running = running.then(() => restore(photo, signal));
}

async function restore(photo, signal) {
  try {
    signal.throwIfAborted();
    const { width, height } = photo.image;
    name = photo.name;
    put("before", photo.shown);
    for (const id of ["error", "drop", "found", "save", "another"]) show(id, false);
    for (const id of ["stage", "cancel", "progress"]) show(id, true);
    $("compare").classList.add("working");
    $("status").textContent = "opening the model";
    $("progress").removeAttribute("value");
    const model = await opened();
    const start = performance.now();
    wheel(model.spec);
    const asked = ticked();
    const fix = !model.spec.families.length || $("auto").checked ? undefined : asked;
    const nothing = fix && !asked.length; // nothing is to be mended: the network would be asked for nothing
    const result = await model.restore(photo.image, {
      signal,
      fix: nothing ? undefined : fix,
      strength: nothing ? 0 : 1, // the slider blends what is shown
      numbers: numbers(),
      onProgress: (done, total) => {
        Object.assign($("progress"), { value: done, max: total });
        const left = done ? ((performance.now() - start) / done) * (total - done) : 0;
        $("status").textContent =
          `tile ${done} of ${total}` + (done && left > 1500 ? `, ${Math.ceil(left / 1000)} s left` : "");
      },
    });
    put("after", result.bitmap);
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    $("status").textContent = `${width} x ${height} in ${seconds} s`;
    const threads = model.threads === 1 ? "one thread" : `${model.threads} threads`;
    $("about").textContent = `${model.spec.name} (${model.spec.precision}) on ${model.backend}, ${threads}`;
    $("compare").classList.remove("working");
    bars(model.spec, result.posterior);
    $("hints").textContent = result.hints
      .map(({ family, text }) => `${text}: tick ${family.replaceAll("_", " ")}`)
      .join("; ");
    show("hints", result.hints.length > 0);
    show("save", true);
  } catch (error) {
    const cancelled = error.name === "AbortError";
    $("status").textContent = cancelled ? "cancelled" : "";
    if (!cancelled) fail(error);
  }
  show("progress", false);
  show("cancel", false);
  show("another", true);
}

const element = (kind, properties, ...children) => {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
};

/** The boxes of a model's families and the fields of its numbers, made once; without them only the slider is there. */
function wheel({ families, numbers: named, number_defaults: defaults, number_ranges: ranges }) {
  show("wheel", true);
  if (!$("numbers").childElementCount) {
    const fields = named.map((number, i) => {
      const [min, max] = ranges[i];
      return element(
        "label",
        {},
        `${number} `,
        element("input", { type: "number", name: number, min, max, step: "any", value: defaults[i], required: true }),
      );
    });
    $("numbers").replaceChildren(...fields);
  }
  show("mend", families.length > 0);
  if ($("families").childElementCount) return;
  const boxes = families.map((family) =>
    element(
      "label",
      {},
      element("input", { type: "checkbox", value: family, disabled: $("auto").checked }),
      ` ${family.replaceAll("_", " ")}`,
    ),
  );
  $("families").replaceChildren(...boxes);
}

/** The picture as it is shown: before and after, blended. */
function blended() {
  if (strength() === 1) return $("after");
  const { width, height } = $("after");
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.globalAlpha = 1 - strength();
  context.globalCompositeOperation = "copy";
  context.drawImage($("before"), 0, 0);
  context.globalAlpha = strength();
  context.globalCompositeOperation = "lighter"; // a sum, of transparent pixels too
  context.drawImage($("after"), 0, 0);
  return canvas;
}

/** The likeliest clusters of each level; clusters of one name are shown together. */
function bars(spec, posterior) {
  let at = 0;
  const boxes = spec.clusters.map((count, level) => {
    const shares = new Map();
    for (let cluster = 0; cluster < count; cluster++, at++) {
      const label = spec.cluster_labels[level]?.[cluster]?.replaceAll("_", " ") || `cluster ${cluster}`;
      shares.set(label, (shares.get(label) ?? 0) + posterior[at]);
    }
    const ranked = [...shares].sort((a, b) => b[1] - a[1]).slice(0, MOST_ROWS);
    const rows = ranked.map(([label, share]) =>
      element(
        "div",
        { className: "row" },
        element("span", { textContent: label, title: label }),
        element("meter", { value: share, max: 1 }),
        element("span", { textContent: `${Math.round(share * 100)} %` }),
      ),
    );
    return element("div", { className: "level" }, element("b", { textContent: `level ${level + 1}` }), ...rows);
  });
  $("levels").replaceChildren(...boxes);
  show("found", boxes.length > 0);
}

$("split").addEventListener("input", ({ target }) => {
  $("compare").style.setProperty("--split", `${target.value / 10}%`);
});
$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) take(target.files[0]);
  target.value = "";
});
$("drop").addEventListener("keydown", ({ key }) => {
  if (key === "Enter" || key === " ") $("file").click();
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
$("strength").addEventListener("input", () => {
  $("share").value = `${Math.round(100 * strength())} %`;
  $("compare").style.setProperty("--strength", strength()); // no pixel is computed
});
$("mend").addEventListener("change", ({ target }) => {
  if (target.id === "auto") for (const box of $("families").querySelectorAll("input")) box.disabled = target.checked;
  if (given) take(given);
});
$("numbers").addEventListener("change", ({ target }) => {
  if (given && target.reportValidity()) take(given);
});
$("cancel").addEventListener("click", () => abort?.abort());
$("another").addEventListener("click", () => $("file").click());
$("save").addEventListener("click", () => {
  blended().toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), {
      href: URL.createObjectURL(blob),
      download: `${name}-restored.png`,
    });
    link.click();
    URL.revokeObjectURL(link.href);
  });
});
