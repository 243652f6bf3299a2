// Looks at the status page as people do, in a real Chromium, and says what it
// found as JSON on standard output.
//
//   node look.mjs MODULES CHROMIUM '{"pages":[{"name","url"}],"screenshots":"DIR"}'
//
// MODULES is the directory with node_modules.
import {createRequire} from "node:module";
import {readFileSync} from "node:fs";
import {join} from "node:path";

const [modules, executablePath, plan] = process.argv.slice(2);
const require = createRequire(join(modules, "package.json"));
const {chromium} = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const {pages, screenshots} = JSON.parse(plan);

const looks = [
  {look: "light", colorScheme: "light", viewport: {width: 1280, height: 900}},
  {look: "phone", colorScheme: "dark", viewport: {width: 375, height: 740}},
];
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--force-color-profile=srgb"],
  env: {...process.env, TZ: "UTC"},
});
const findings = [];
for (const {name, url} of pages) {
  for (const {look, ...options} of looks) {
    const context = await browser.newContext({...options, locale: "en-GB", timezoneId: "UTC"});
    const page = await context.newPage();
    const errors = [], elsewhere = [];
    page.on("console", m => m.type() === "error" && errors.push(m.text()));
    page.on("pageerror", e => errors.push(String(e)));
    page.on("request", r => r.url().startsWith(new URL(url).origin) || r.url().startsWith("data:") || elsewhere.push(r.url()));
    await page.goto(url);
    if (new URL(url).pathname === "/") await page.waitForSelector("#verdict .word");
    await page.evaluate(axe);
    const audit = await page.evaluate(() => globalThis.axe.run(document));
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    // Every link can be reached by keyboard alone, in the order of the page.
    const links = await page.locator("a:visible").count();
    const reached = new Set();
    for (let i = 0; i < links + 2; i++) {
      await page.keyboard.press("Tab");
      reached.add(await page.evaluate(() => document.activeElement?.tagName === "A" ? [...document.links].indexOf(document.activeElement) : -1));
    }
    reached.delete(-1);
    await page.evaluate(() => { document.activeElement?.blur(); scrollTo(0, 0); });
    if (screenshots && look === "light" && new URL(url).pathname === "/") {
      await page.setViewportSize({width: 1100, height: 1250});
      await page.screenshot({path: join(screenshots, "status-" + name + ".png")});
    }
    findings.push({
      name, look, errors, elsewhere, overflow, links, reached: reached.size,
      title: await page.title(), text: await page.innerText("body"),
      violations: audit.violations.map(v => ({id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.map(n => n.html.slice(0, 120))})),
    });
    await context.close();
  }
}
await browser.close();
process.stdout.write(JSON.stringify(findings));
