/**
 * Gets what a machine with Xen is made of, on Debian: the hypervisor, its tools and their libraries, a
 * kernel for Dom0 and DomU, busybox; unpacked in the cache directory.
 *
 *     deno run -A scripts/fetch_xen.ts
 *
 * They are stock packages of the suites that {@link XEN} names. No root is needed and the system's packages and
 * sources stay as they are: apt works on lists and sources of its own, of the mirror that the system uses.
 */

import { UsageError, VmsgError } from "../src/linux/errors.ts";
import { download, foreignApt } from "./fetch_arm64.ts";
import { cacheDirectory } from "./lab/cache.ts";
import type { MachineArchitecture } from "./lab/machine_image.ts";
import { compareVersions, findKernelBelow } from "./lab/machines.ts";
import { mustRun } from "./lab/run_command.ts";

/** What differs between architectures. */
interface XenPackages {
  /** Debian's name of the architecture. */
  readonly name: "amd64" | "arm64";
  /** The suite of Xen and all that its tools need. */
  readonly suite: string;
  readonly version: string;
  /** The suite of the kernel and busybox. */
  readonly kernelSuite: string;
}

/** Which Xen there is, by architecture. */
export const XEN: Readonly<Record<MachineArchitecture, XenPackages>> = {
  x86_64: { name: "amd64", suite: "trixie", version: "4.20", kernelSuite: "trixie" },
  aarch64: { name: "arm64", suite: "bookworm", version: "4.17", kernelSuite: "trixie" },
};

/** What `xl`, `xenstored` and `xenconsoled` load, besides libxenmisc of their version. */
const LIBRARIES: readonly string[] = [
  ...["libc6", "libgcc-s1", "libxencall1", "libxenevtchn1", "libxenforeignmemory1"],
  ...["libxengnttab1", "libxenstore4", "libxentoollog1", "libxentoolcore1", "libxendevicemodel1"],
  ...["libxenhypfs1", "libyajl2", "libuuid1", "libfdt1", "libnl-3-200", "libnl-route-3-200"],
  ...["zlib1g", "liblzma5", "libbz2-1.0", "libzstd1", "liblzo2-2"],
];

/** Where the parts lie. */
export interface XenInstallation {
  readonly architecture: MachineArchitecture;
  /** As in "4.20". */
  readonly version: string;
  /** The hypervisor's image, as QEMU boots it. */
  readonly hypervisor: string;
  /** A root directory with Xen's tools and their libraries. */
  readonly root: string;
  readonly kernel: string;
  /** Its modules directory. */
  readonly modules: string;
  /** A static busybox of the architecture. */
  readonly busybox: string;
}

/** Looks in the cache directory. */
export async function findXen(
  architecture: MachineArchitecture,
): Promise<XenInstallation | undefined> {
  const cache = cacheDirectory();
  if (cache === undefined) return undefined;
  return await xenBelow(`${cache}/xen-${architecture}`, architecture);
}

async function xenBelow(
  directory: string,
  architecture: MachineArchitecture,
): Promise<XenInstallation | undefined> {
  const { version, name } = XEN[architecture];
  const kernel = await findKernelBelow(`${directory}/kernel/`, name);
  const hypervisor = `${directory}/xen`;
  const there = await Deno.stat(hypervisor).then(({ isFile }) => isFile, () => false);
  if (!there || kernel === undefined) return undefined;
  return {
    architecture,
    version,
    hypervisor,
    root: `${directory}/root`,
    kernel: kernel.image,
    modules: kernel.modules,
    busybox: `${directory}/kernel/usr/bin/busybox`,
  };
}

/** The mirror that the system's own packages come from. */
async function mirror(): Promise<string> {
  const release = await Deno.readTextFile("/etc/os-release").catch(() => "");
  const codename = /^VERSION_CODENAME=(\w+)$/m.exec(release)?.[1];
  const format = ["--format", "$(SITE) $(RELEASE)", "Created-By: Packages"];
  const lines = (await mustRun(["apt-get", "indextargets", ...format])).split("\n");
  const site = lines.map((line) => line.split(" ")).find(([, suite]) =>
    suite === codename || suite === "stable"
  )?.[0];
  if (site !== undefined) return site;
  throw new VmsgError("NO_MIRROR", `apt names no source for ${codename}: this wants Debian`);
}

const KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg";

/** Options that have apt know nothing but one suite, of one architecture, or its sources. */
export async function suiteApt(
  architecture: string,
  suite: string,
  state: string,
  kind: "deb" | "deb-src" = "deb",
): Promise<string[]> {
  const options = await foreignApt(architecture, state);
  const sources = `${state}/sources.list`;
  await Deno.writeTextFile(
    sources,
    `${kind} [signed-by=${KEYRING}] ${await mirror()} ${suite} main\n`,
  );
  await Deno.mkdir(`${state}/none`, { recursive: true });
  const own = [`Dir::Etc::sourcelist=${sources}`, `Dir::Etc::sourceparts=${state}/none`];
  const apt = [...options, ...own.flatMap((setting) => ["-o", setting])];
  await mustRun(["apt-get", ...apt, "update"]);
  return apt;
}

async function newestKernel(apt: readonly string[], architecture: string): Promise<string> {
  const search = ["search", "--names-only", `^linux-image-6\\.12\\..*[0-9]-${architecture}$`];
  const found = await mustRun(["apt-cache", ...apt, ...search]);
  const names = found.split("\n").map((line) => line.split(" ")[0]!);
  const newest = names.sort(compareVersions).at(-1);
  if (newest) return newest;
  throw new VmsgError("NO_KERNEL_PACKAGE", `apt knows no linux-image-6.12 for ${architecture}`);
}

async function unpack(directory: string, names: string[], apt: string[], root: string) {
  await Deno.mkdir(root, { recursive: true });
  for (const file of await download(directory, names, apt)) {
    await mustRun(["dpkg-deb", "-x", file, root]);
  }
}

/** Fetches it unless it is there; whoever comes first wins. */
export async function fetchXen(architecture: MachineArchitecture): Promise<XenInstallation> {
  const there = await findXen(architecture);
  if (there !== undefined) return there;
  const cache = cacheDirectory();
  if (cache === undefined) {
    throw new VmsgError("NO_CACHE", "there is no cache directory: set XDG_CACHE_HOME or HOME");
  }
  const { name, suite, version, kernelSuite } = XEN[architecture];
  await Deno.mkdir(cache, { recursive: true });
  const unfinished = await Deno.makeTempDir({ dir: cache, prefix: "unfinished-" });
  const tree = `${unfinished}/tree`;
  try {
    const apt = await suiteApt(name, suite, `${unfinished}/apt`);
    const xen = [`xen-hypervisor-${version}-${name}`, `xen-utils-${version}`];
    const tools = ["xen-utils-common", "xenstore-utils", `libxenmisc${version}`];
    console.log(`fetching ${xen.join(", ")} and what they need`);
    const packages = [...xen, ...tools, ...LIBRARIES];
    await unpack(`${unfinished}/xen`, packages, apt, `${tree}/root`);
    const kernelApt = kernelSuite === suite
      ? apt
      : await suiteApt(name, kernelSuite, `${unfinished}/kernel-apt`);
    const kernel = [await newestKernel(kernelApt, name), "busybox-static"];
    console.log(`fetching ${kernel.join(" and ")} for ${name}`);
    await unpack(`${unfinished}/kernel`, kernel, kernelApt, `${tree}/kernel`);
    await unpackHypervisor(`${tree}/root/boot`, `${tree}/xen`);
    if (await xenBelow(tree, architecture) === undefined) {
      throw new VmsgError("NO_XEN", `the packages hold no Xen that could be booted`);
    }
    const target = `${cache}/xen-${architecture}`;
    await Deno.remove(target, { recursive: true }).catch(() => {});
    await Deno.rename(tree, target);
  } finally {
    await Deno.remove(unfinished, { recursive: true });
  }
  return (await findXen(architecture))!;
}

/** QEMU's multiboot wants an ELF file on x86, arm64's image is not compressed. */
async function unpackHypervisor(boot: string, to: string): Promise<void> {
  const names = Array.from(Deno.readDirSync(boot), ({ name }) => name).sort();
  const packed = names.find((name) => /^xen-[\d.]+-amd64\.gz$/.test(name));
  const plain = names.find((name) => /^xen-[\d.]+-arm64$/.test(name));
  if (packed !== undefined) {
    await mustRun(["sh", "-c", 'gzip -dc "$1" > "$2"', "sh", `${boot}/${packed}`, to]);
  } else if (plain !== undefined) {
    await Deno.copyFile(`${boot}/${plain}`, to);
  }
}

if (import.meta.main) {
  try {
    const [architecture = Deno.build.arch] = Deno.args;
    if (!(architecture in XEN)) throw new UsageError(`no Xen for ${architecture}`);
    const { root } = await fetchXen(architecture as MachineArchitecture);
    console.log(`Xen is in ${root}`);
  } catch (error) {
    if (!(error instanceof VmsgError)) throw error;
    console.error(`fetch_xen: ${error.message}`);
    Deno.exit(1);
  }
}
