/**
 * Builds arm64's hypervisor with ioreq servers, by which a program in Dom0 can serve a card: the one option that
 * Debian's package lacks. Its tools need no change.
 *
 *     deno run -A scripts/build_xen.ts
 *
 * The source is Debian's source package of the same version, fetched as fetch_xen.ts fetches the packages, and
 * built once: what comes out is kept in the cache directory beside the stock one. No root is needed; compilers are
 * this system's.
 */

import { VmsgError } from "../src/linux/errors.ts";
import { fetchXen, suiteApt, XEN, type XenInstallation } from "./fetch_xen.ts";
import { findProgram } from "./lab/libraries.ts";
import { mustRun } from "./lab/run_command.ts";

/** What is asked of Xen's own build beyond its defaults; the first two open the door to the third. */
const OPTIONS = ["CONFIG_EXPERT=y", "CONFIG_UNSUPPORTED=y", "CONFIG_IOREQ_SERVER=y"];
const PREFIX = "aarch64-linux-gnu-";

/** Programs of a build, and the packages that have them. */
const TOOLS: Readonly<Record<string, string>> = {
  [`${PREFIX}gcc`]: "gcc-aarch64-linux-gnu",
  gcc: "gcc",
  make: "make",
  bison: "bison",
  flex: "flex",
  "dpkg-source": "dpkg-dev",
};

const builtPath = ({ hypervisor }: XenInstallation) => `${hypervisor}-ioreq`;

/** The installation with a hypervisor that has ioreq servers, if there is one: x86's has them in any case. */
export async function findBuiltXen(xen: XenInstallation): Promise<XenInstallation | undefined> {
  if (xen.architecture === "x86_64") return xen;
  const hypervisor = builtPath(xen);
  const isThere = await Deno.stat(hypervisor).then(({ isFile }) => isFile, () => false);
  return isThere ? { ...xen, hypervisor } : undefined;
}

async function checkTools(): Promise<void> {
  const missing: string[] = [];
  for (const [program, name] of Object.entries(TOOLS)) {
    if (await findProgram(program) === undefined) missing.push(name);
  }
  if (missing.length === 0) return;
  throw new VmsgError(
    "NO_TOOLS",
    `building Xen for arm64 needs: apt-get install --no-install-recommends ${missing.join(" ")}`,
  );
}

/** As {@link findBuiltXen}, and builds it unless it is there: some minutes. */
export async function buildXen(xen: XenInstallation): Promise<XenInstallation> {
  const there = await findBuiltXen(xen);
  if (there !== undefined) return there;
  await checkTools();
  const { name, suite, version } = XEN[xen.architecture];
  const unfinished = await Deno.makeTempDir({
    dir: xen.hypervisor.slice(0, xen.hypervisor.lastIndexOf("/")),
    prefix: "unfinished-",
  });
  try {
    console.log(`building Xen ${version} for ${name} with ioreq servers, once: some minutes`);
    const beganMs = performance.now();
    const apt = await suiteApt(name, suite, `${unfinished}/apt`, "deb-src");
    await mustRun(["apt-get", ...apt, "source", "--download-only", "xen"], { cwd: unfinished });
    const description = Array.from(Deno.readDirSync(unfinished), ({ name }) => name)
      .find((name) => name.endsWith(".dsc"))!;
    // apt has checked what it downloaded.
    const unpack = ["dpkg-source", "--no-check", "-x", description, "tree"];
    await mustRun(unpack, { cwd: unfinished });
    const tree = `${unfinished}/tree/xen`;
    await Deno.writeTextFile(`${tree}/arch/arm/configs/vmsg_defconfig`, `${OPTIONS.join("\n")}\n`);
    const make = ["make", "-C", tree, "XEN_TARGET_ARCH=arm64", `CROSS_COMPILE=${PREFIX}`];
    await mustRun([...make, "vmsg_defconfig"]);
    const isChosen = (await Deno.readTextFile(`${tree}/.config`)).includes(OPTIONS.at(-1)!);
    if (!isChosen) {
      throw new VmsgError("NO_IOREQ", `Xen ${version} does not know ${OPTIONS.at(-1)}`);
    }
    await mustRun([...make, `-j${navigator.hardwareConcurrency}`, "build"]);
    await Deno.rename(`${tree}/xen`, builtPath(xen));
    console.log(`built in ${Math.round((performance.now() - beganMs) / 1000)} s`);
  } finally {
    await Deno.remove(unfinished, { recursive: true });
  }
  return (await findBuiltXen(xen))!;
}

if (import.meta.main) {
  try {
    const { hypervisor } = await buildXen(await fetchXen("aarch64"));
    console.log(`Xen with ioreq servers is ${hypervisor}`);
  } catch (error) {
    if (!(error instanceof VmsgError)) throw error;
    console.error(`build_xen: ${error.message}`);
    Deno.exit(1);
  }
}
