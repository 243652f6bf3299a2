// Stays on the status page while the verdict changes and the watchdog ends, and
// says as JSON on standard output what was seen. It writes a line to standard
// error when it is ready for the next thing to happen.
//
//   node follow.mjs MODULES CHROMIUM URL
import {createRequire} from "node:module";
import {join} from "node:path";

const [modules, executablePath, url] = process.argv.slice(2);
const {chromium} = createRequire(join(modules, "package.json"))("playwright-core");
const browser = await chromium.launch({executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]});
const page = await browser.newPage();
await page.goto(url);
await page.waitForSelector("#verdict.healthy .word");
await page.evaluate(() => {
  // What is only changed and not made anew keeps its marks.
  for (const e of document.querySelectorAll("#stages > li, #verdict .word, #facts dd")) e.marked = true;
  document.querySelector("footer a").focus();
});
process.stderr.write("healthy\n");
await page.waitForSelector("#verdict.broken .word", {timeout: 20000});
const broken = await page.evaluate(() => ({
  kept: [...document.querySelectorAll("#stages > li, #verdict .word")].every(e => e.marked),
  focus: document.activeElement === document.querySelector("footer a"),
  title: document.title,
  stopped: document.querySelector("#stages > li.stopped h3")?.textContent,
}));
process.stderr.write("broken\n");
await page.waitForSelector("#connection:not([hidden])", {timeout: 20000});
const gone = await page.evaluate(() => ({
  alert: document.querySelector("#connection").textContent,
  verdict: document.querySelector("#verdict").className,
}));
await browser.close();
process.stdout.write(JSON.stringify({broken, gone}));
