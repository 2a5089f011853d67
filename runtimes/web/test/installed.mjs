// node installed.mjs DIST MODELS PHOTO.png SAVED.png [CHROMIUM]
//
// In headless Chromium: the page is opened once, its server ends, and the page opened again restores a photo all the
// same; the browser finds nothing that would keep it from being installed. MODELS: a folder with tiny.onnx and others.
import { launch } from "./chromium.mjs";
import { serve } from "./server.mjs";
import { check, finish } from "./support.mjs";

const [dist, models, photo, saved] = process.argv.slice(2, 6);
const browser = await launch(process.argv[6] ?? "/usr/bin/chromium");
try {
  const server = await serve({ "/": dist, "/models/": models }, { isolated: true });
  const page = await (await browser.newContext()).newPage();
  page.on("pageerror", (error) => check(false, `page error: ${error.message}`));
  await page.goto(`${server.origin}/`);
  const kept = () =>
    page.evaluate(async () => {
      const [name] = await caches.keys();
      const requests = name ? await (await caches.open(name)).keys() : [];
      return requests.map(({ url }) => new URL(url).pathname);
    });
  const whole = (files) => files.includes("/models/tiny.tile.onnx") && files.some((file) => file.endsWith(".wasm"));
  for (let turn = 0; turn < 600 && !whole(await kept()); turn++) await page.waitForTimeout(200);
  const files = await kept();
  for (const file of ["/", "/index.html", "/worker.js", "/app.webmanifest", "/models/tiny.router.onnx", "/models/tiny.onnx.data"])
    check(files.includes(file), `${file} is kept`);
  check(whole(files), "the runtime and the model are kept");
  check(!files.some((file) => file.includes(".asyncify.")), "and not what no page asked for");

  const tools = await page.context().newCDPSession(page);
  const { installabilityErrors: faults } = await tools.send("Page.getInstallabilityErrors");
  const told = faults.map(({ errorId }) => errorId).filter((id) => id !== "in-incognito"); // as every context of a test is
  check(told.length === 0, `it can be installed: ${told}`);
  const { data, errors } = await tools.send("Page.getAppManifest");
  check(errors.length === 0 && JSON.parse(data).display === "standalone", `the manifest: ${JSON.stringify(errors)}`);

  const asked = server.requests.length;
  server.close();
  await page.goto(`${server.origin}/index.html?backend=wasm`);
  check(await page.evaluate(() => crossOriginIsolated), "isolated without its server");
  await page.setInputFiles("#file", photo);
  await page.waitForSelector("#save:not([hidden]), #error:not([hidden])", { timeout: 400000 });
  check(!(await page.isVisible("#error")), await page.textContent("#error"));
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
  await download.saveAs(saved);
  check(server.requests.length === asked, "the server was not there");
} catch (error) {
  check(false, error.stack);
} finally {
  await browser.close();
}
finish();
