// A real browser, which needs nothing of the machine.

import { writeFileSync } from "node:fs";
import { join } from "node:path";

// The package unpacks the browser, its libraries and fonts into the temporary folder, which is the test's own. It brings
// the libraries only where it takes the machine for the one that it was made for.
export async function launch(folder) {
  process.env.TMPDIR = folder;
  process.env.AWS_LAMBDA_JS_RUNTIME = "nodejs20.x";
  const fonts = join(folder, "fonts.xml");
  writeFileSync(fonts, `<fontconfig><dir>${folder}/fonts</dir><cachedir>${folder}/cache</cachedir></fontconfig>`);
  process.env.FONTCONFIG_FILE = fonts;
  const { default: chromium } = await import("@sparticuz/chromium");
  const { default: puppeteer } = await import("puppeteer-core");
  chromium.setGraphicsMode = false;
  return puppeteer.launch({
    executablePath: await chromium.executablePath(),
    args: ["--no-sandbox", "--disable-gpu"],
    headless: "shell",
  });
}
