// What may be mended, and how far. Mirrors runtimes/restore/permissions.py; docs/permissions.md is the contract.

/** The evidence from which on a family that was left alone is mentioned. */
const PERHAPS = 0.5;
/** The evidence of blur from which on it is mended unasked beside noise or JPEG. */
const BLUR_BESIDE_FAULTS = 0.6;
const LOOKS = {
  noise: "noisy",
  jpeg: "compressed",
  blur: "blurred",
  rain: "rainy",
  haze: "hazy",
  low_light: "too dark",
};

const nameOf = (text) => String(text).trim().toLowerCase().replaceAll("-", "_");
const refuse = (why) => {
  throw new RangeError(why);
};

function shareOf(value) {
  const plain = typeof value === "number" || (typeof value === "string" && value.trim() !== "");
  const share = plain ? Number(value) : NaN;
  if (!(share >= 0 && share <= 1))
    refuse(`strength '${value}' is not a number from 0 to 1, for example 0.5 or noise=0.6`);
  return share;
}

/** The strengths by name; the overall one has none. */
function readStrength(strength) {
  let pairs = [["", strength]];
  if (typeof strength === "string") {
    pairs = strength.split(",").map((part) => {
      const equals = part.lastIndexOf("=");
      if (equals < 0) return ["", part];
      if (!nameOf(part.slice(0, equals))) refuse(`strength '${part}' names no family before the '='`);
      return [part.slice(0, equals), part.slice(equals + 1)];
    });
  } else if (strength !== null && typeof strength === "object") pairs = Object.entries(strength);
  const found = new Map();
  for (const [text, value] of pairs) {
    const name = nameOf(text);
    if (found.has(name)) refuse(`strength says ${name || "the overall one"} twice`);
    found.set(name, shareOf(value));
  }
  return found;
}

function readFix(fix) {
  if (fix === undefined || fix === null) return null;
  const words = [...new Set((typeof fix === "string" ? fix.split(",") : [...fix]).map(nameOf))];
  if (!words.length || words.includes(""))
    refuse(`fix '${fix}': name families, for example noise,jpeg, or auto or all`);
  return words;
}

/**
 * The steering for a model.
 * @param fix nothing or "auto", "all", or families as a list or with commas between
 * @param strength 0..1, text as "0.8,noise=0.6", or {family: strength}, in which "" is the overall one
 * @returns {{permissions: Float32Array, blend: number}} permissions as the router takes them, and the share of the
 * result in what comes out; throws RangeError
 */
export function steer({ families, evidence_floors: floors = [], scale = 1 }, fix, strength = 1) {
  const words = readFix(fix);
  const own = readStrength(strength);
  const blend = own.get("") ?? 1;
  own.delete("");
  if (!families.length && (words || own.size)) {
    refuse(
      `${words ? `fix '${fix}'` : "strengths of families"}: the model takes no permissions and mends everything it ` +
        "knows at once; an overall strength works with any model",
    );
  }
  if (scale !== 1 && blend !== 1) refuse("strength: an enlarged picture cannot be blended with what went in");
  const asked = words ?? ["auto"];
  for (const word of asked)
    if (!["auto", "all", ...families].includes(word)) refuse(`the model knows no family '${word}'`);
  for (const name of own.keys()) if (!families.includes(name)) refuse(`the model knows no family '${name}'`);
  const auto = asked.includes("auto");
  const all = asked.includes("all") || (asked.length > 1 && families.every((family) => asked.includes(family)));
  if (asked.length > 1 && (auto || asked.includes("all"))) refuse(`fix '${fix}': auto and all stand alone`);
  const permissions = Float32Array.from(families, (family) => {
    const share = own.get(family) ?? 1;
    if (auto) return share && -share;
    if (all && share > 0 && floors.length) return -1 - share;
    return all || asked.includes(family) ? share : 0;
  });
  return { permissions, blend };
}

/** Whether a router would do the same untold, so that a whole graph may answer alone. */
export const isPlain = ({ permissions }) => permissions.every((permission) => permission === -1);

/** Whether a family may be mended: it is asked for, or the evidence for it reaches what its permission demands. */
function mends(permission, evidence, threshold, floor = threshold) {
  return permission < 0 ? evidence >= Math.fround(permission < -1 ? floor : threshold) : permission > 0;
}

/** Whether no family may be mended, so that the picture comes back as it went in; never for a model that enlarges. */
export function nothingToMend(evidence, permissions, spec) {
  const { families, evidence_thresholds: thresholds, evidence_floors: floors = [], scale = 1 } = spec;
  const any = permissions.some((permission, i) => mends(permission, evidence[i], thresholds[i], floors[i]));
  return families.length > 0 && scale === 1 && !any;
}

/**
 * What the picture may suffer from and was left alone: [{family, text}], for example text "perhaps hazy". Beside noise
 * or JPEG blur is left where its evidence is not strong and nobody asked for it by name.
 */
export function hints(evidence, permissions, { families, evidence_thresholds, evidence_floors: floors = [] }) {
  const own = families.map((_, i) => mends(permissions[i], evidence[i], evidence_thresholds[i], floors[i]));
  const faults = families.some((family, i) => ["noise", "jpeg"].includes(family) && own[i]);
  return families.flatMap((family, i) => {
    const doubted =
      family === "blur" &&
      faults &&
      evidence_thresholds[i] > 0 &&
      permissions[i] < 0 &&
      evidence[i] < Math.fround(BLUR_BESIDE_FAULTS);
    const left = own[i] ? doubted : evidence[i] >= PERHAPS;
    return left ? [{ family, text: `perhaps ${LOOKS[family] ?? family}` }] : [];
  });
}
