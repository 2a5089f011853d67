// node browser.mjs DIST REPOSITORY MODEL_STEM PHOTO.png SCREENSHOT_FOLDER [CHROMIUM]
//
// In headless Chromium: the golden cases through the built package and its worker; then the demo page with a real
// photo: it must answer while it works, cancel, compare, show bars and save. Prints one JSON line of measurements at
// the end.
import { mkdirSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { launch } from "./chromium.mjs";
import { serve } from "./server.mjs";

const [dist, repository, model, photo, shots] = process.argv.slice(2, 7).map((path) => resolve(path));
const executablePath = process.argv[7] ?? "/usr/bin/chromium";
const folders = {
  "/": dist,
  "/repository/": repository,
  "/models/": dirname(model),
};
const PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const DOT = { name: "dot.png", mimeType: "image/png", buffer: Buffer.from(PIXEL, "base64") };
mkdirSync(shots, { recursive: true });

let passed = 0;
let failed = 0;
const check = (holds, what) => {
  if (holds) passed++;
  else failed++;
  if (!holds) console.log(`FAILED: ${what}`);
};

async function golden(page, origin, isolated) {
  await page.goto(`${origin}/repository/tests/golden/manifest.json`); // any page of this origin, with nothing on it
  const { report, threads, backend } = await page.evaluate(async (at) => {
    const { Restorer } = await import("/clusir.js");
    const { runGolden } = await import("/repository/runtimes/web/test/golden.mjs");
    const read = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());
    let last;
    const open = async (url) => (last = await Restorer.open(url.href));
    const report = await runGolden(new URL(at), read, open);
    return { report, threads: last.threads, backend: last.backend };
  }, `${origin}/repository/tests/golden/`);
  for (const { name, failures } of report)
    check(failures.length === 0, `browser, ${threads} threads, ${name}: ${failures.join("; ")}`);
  check(report.length > 0, "there are golden cases");
  check(
    isolated ? threads > 1 || (await page.evaluate(() => navigator.hardwareConcurrency)) === 1 : threads === 1,
    `threads: ${threads}`,
  );
  return { backend, threads, worst: Math.max(...report.map((entry) => entry.difference)) };
}

/** The longest time, in milliseconds, that the page did not answer between two calls. */
const startGaps = (page) =>
  page.evaluate(() => {
    let before = performance.now();
    globalThis.longestGap = 0;
    globalThis.gapTimer = setInterval(() => {
      const now = performance.now();
      globalThis.longestGap = Math.max(globalThis.longestGap, now - before);
      before = now;
    }, 5);
  });

const stopGaps = (page) => page.evaluate(() => (clearInterval(globalThis.gapTimer), globalThis.longestGap));

/** Tasks of the page's own thread, in milliseconds of processor time, which other programs do not lengthen. */
const tasksOf = (trace) => {
  const { traceEvents: events } = JSON.parse(trace);
  const key = ({ pid, tid }) => `${pid}/${tid}`;
  const named = events.filter(({ name, args }) => name === "thread_name" && args.name === "CrRendererMain");
  const main = new Set(named.map(key));
  const tasks = events.filter((event) => event.name === "RunTask" && main.has(key(event)));
  return tasks.map(({ tdur = 0 }) => tdur / 1000);
};

/** Gives the photo, and waits for its first tile. */
async function started(page) {
  await page.setInputFiles("#file", photo);
  const working = () => /^tile [1-9]/.test(document.querySelector("#status").value);
  await page.waitForFunction(working, null, { timeout: 240000, polling: 5 });
}

/** A picture for people to look at. On a busy machine Chromium sometimes cannot take one; no check depends on it. */
async function shoot(page, name, fullPage = false) {
  try {
    await page.screenshot({ path: join(shots, name), fullPage });
  } catch (error) {
    console.log(`no screenshot ${name}: ${String(error).split("\n")[0]}`);
  }
}

async function demo(page, origin) {
  await page.setViewportSize({ width: 1000, height: 900 });
  await page.goto(`${origin}/index.html?model=/models/${basename(model)}.onnx`);
  await shoot(page, "1-empty.png");
  const text = { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("no picture") };
  await page.setInputFiles("#file", text);
  await page.waitForSelector("#error:not([hidden])");
  check((await page.textContent("#error")).includes("not a picture"), "a text file is refused with a line");

  await started(page);
  await shoot(page, "2-working.png");
  await page.setInputFiles("#file", DOT);
  await page.waitForSelector("#save:not([hidden])", { timeout: 60000 });
  check((await page.textContent("#status")).startsWith("1 x 1 in"), "another photo takes the place of a running one");
  await page.setInputFiles("#file", text);
  await page.waitForSelector("#error:not([hidden])");
  check(await page.isVisible("#save"), "a refused file leaves the result");

  await started(page);
  const clicked = Date.now();
  await page.click("#cancel");
  await page.waitForFunction(() => document.querySelector("#status").value === "cancelled", null, { timeout: 60000 });
  const cancelMs = Date.now() - clicked;
  // What the machine's other programs do to a page with nothing to do; then from here to the end of the work: reading the
  // photo, tiles, progress, showing the result.
  await startGaps(page);
  await page.waitForTimeout(1000);
  const idle = await stopGaps(page);
  await startGaps(page);

  await browser.startTracing(page, { categories: ["toplevel", "disabled-by-default-devtools.timeline"] });
  await page.setInputFiles("#file", photo);
  await page.waitForSelector("#save:not([hidden])", { timeout: 400000 });
  const tasks = tasksOf((await browser.stopTracing()).toString());
  const gap = await stopGaps(page);
  const told = await page.textContent("#status");
  const rows = await page.locator("#levels .row").count();
  check(rows > 0, "posterior bars are shown");
  const before = await page.evaluate(() => document.querySelector("#before").toDataURL().length);
  const after = await page.evaluate(() => document.querySelector("#after").toDataURL().length);
  check(after !== before, "the restored picture differs from the photo");
  await shoot(page, "3-done.png", true);
  await page.fill("#split", "150");
  check(
    (await page.evaluate(() => document.querySelector("#compare").style.getPropertyValue("--split"))) === "15%",
    "the slider moves",
  );
  await shoot(page, "4-slider.png");
  const families = await page.locator("#families input").count();
  if (basename(model).startsWith("standin")) check(families === 4, `${families} boxes of families`);
  await page.fill("#strength", "50");
  const opacity = await page.evaluate(() => getComputedStyle(document.querySelector("#after")).opacity);
  check(opacity === "0.5", `the strength shows: ${opacity}`);
  check((await page.textContent("#status")) === told, "and nothing is run for it");
  const half = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
  await half[0].saveAs(join(shots, "half.png"));
  await page.fill("#strength", "100");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
  await download.saveAs(join(shots, "saved.png"));
  check(download.suggestedFilename() === `${basename(photo, ".png")}-restored.png`, download.suggestedFilename());
  if (families) {
    await page.uncheck("#auto");
    await page.waitForFunction(() => document.querySelector("#save").hidden, null, { timeout: 60000, polling: 5 });
    await page.check("#families input[value=haze]");
    await page.click("#cancel");
    check(true, "another choice of what to mend restores again");
  }
  await page.setViewportSize({ width: 400, height: 800 });
  await shoot(page, "5-narrow.png", true);
  return {
    longest_gap_ms: Math.round(gap),
    idle_gap_ms: Math.round(idle),
    longest_task_ms: Math.round(10 * Math.max(...tasks)) / 10,
    over_5_ms: Math.round(10 * tasks.reduce((sum, task) => sum + Math.max(0, task - 5), 0)) / 10,
    cancel_ms: cancelMs,
    seconds: Number(/in ([\d.]+) s/.exec(told)?.[1]),
    status: told,
  };
}

/** A field for each number that the model takes; another one restores the photo again. */
async function numbers(page, origin) {
  await page.goto(`${origin}/index.html?model=/repository/tests/golden/standin_numbered.onnx`);
  const pixel = () => page.evaluate(() => {
    const canvas = new OffscreenCanvas(1, 1);
    const context = canvas.getContext("2d");
    context.drawImage(document.querySelector("#after"), 0, 0);
    return [...context.getImageData(0, 0, 1, 1).data].join();
  });
  await page.setInputFiles("#file", DOT);
  await page.waitForSelector("#save:not([hidden])", { timeout: 60000 });
  const plain = await pixel();
  check((await page.inputValue("[name=sigma]")) === "15", "a number's field has its default");
  await page.fill("[name=sigma]", "75");
  await page.dispatchEvent("[name=sigma]", "change");
  for (let tries = 0; (await pixel()) === plain && tries < 300; tries++) await page.waitForTimeout(100);
  check((await pixel()) !== plain, "another number restores the photo again");
}

const browser = await launch(executablePath);
const result = {};
try {
  for (const isolated of [true, false]) {
    const server = await serve(folders, { isolated });
    const page = await (await browser.newContext()).newPage();
    page.on("pageerror", (error) => check(false, `page error: ${error.message}`));
    result[isolated ? "golden_threads" : "golden_single"] = await golden(page, server.origin, isolated);
    if (isolated) {
      result.demo = await demo(page, server.origin);
      const own = server.requests.every((path) => !path.includes("restored"));
      check(own, "nothing is sent");
      await numbers(page, server.origin);
    } else {
      // The page isolates itself where the server does not, and comes back with threads.
      await page.goto(`${server.origin}/index.html`);
      await page.waitForFunction(() => globalThis.crossOriginIsolated, null, { timeout: 15000 });
      check(true, "isolated by its service worker");
    }
    await page.context().close();
    server.close();
  }
} catch (error) {
  check(false, error.stack);
} finally {
  await browser.close();
}
console.log(`${passed} passed, ${failed} failed`);
console.log(JSON.stringify(result));
process.exit(failed ? 1 : 0);
