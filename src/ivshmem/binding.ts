/**
 * Hands an ivshmem function over to the driver vfio-pci, and back.
 *
 * sysfs decides which driver a function gets: `driver_override` names the only one that may have it, then
 * the present driver lets go and the kernel looks for a driver again. Disposing puts both back: the
 * override, and the driver that there was. A process that is killed leaves the function with vfio-pci.
 *
 * Source: Documentation/ABI/testing/sysfs-bus-pci.
 */

import { VmsgError } from "../linux/errors.ts";
import { directoryNames, type PciFunction, readAttribute, writeAttribute } from "../linux/sysfs.ts";
import type { Log } from "../observe/log.ts";

/** The driver that gives functions to processes. */
export const VFIO_DRIVER = "vfio-pci";

/** What `driver_override` shows while there is none. */
const NO_OVERRIDE = "(null)";

/** A function that has the driver vfio-pci until this is disposed. */
export interface Binding extends Disposable {
  /** Did it have another before? */
  readonly changed: boolean;
}

/**
 * Binds a function to vfio-pci, unless it is.
 *
 * @throws VmsgError NO_IOMMU, NO_VFIO, NO_PERMISSION, BIND; nothing is changed then
 */
export function bindToVfio(pci: PciFunction, log: Log): Binding {
  const former = pci.driver;
  if (former === VFIO_DRIVER) return { changed: false, [Symbol.dispose]() {} };
  checkIommu(pci);
  const drivers = `${pci.sysfs}/bus/pci/drivers`;
  if (directoryNames(`${drivers}/${VFIO_DRIVER}`).length === 0) {
    throw new VmsgError(
      "NO_VFIO",
      `ivshmem ${pci.address} cannot be bound to vfio-pci, which is not there: modprobe vfio-pci`,
    );
  }

  const override = pci.attribute("driver_override") ?? NO_OVERRIDE;
  const restore = (): void => {
    if (pci.driver === VFIO_DRIVER) writeAttribute(`${pci.path}/driver/unbind`, pci.address);
    writeAttribute(`${pci.path}/driver_override`, override === NO_OVERRIDE ? "\n" : override);
    if (former !== undefined && pci.driver === undefined) {
      writeAttribute(`${drivers}/${former}/bind`, pci.address);
    }
  };
  const undo = (): void => {
    try {
      restore();
      log.debug(`ivshmem ${pci.address} is back with ${former ?? "no driver"}`);
    } catch (error) {
      const reason = (error as Error).message;
      log.warn(`ivshmem ${pci.address} could not be given back to its driver: ${reason}`);
    }
  };

  try {
    writeAttribute(`${pci.path}/driver_override`, VFIO_DRIVER);
  } catch (error) {
    const { code, message } = error as VmsgError;
    if (code !== "EACCES" && code !== "EPERM") throw notBound(pci, message);
    throw new VmsgError(
      "NO_PERMISSION",
      `ivshmem ${pci.address} may not be bound to vfio-pci: be root, or have root bind it`,
    );
  }
  using stack = new DisposableStack();
  stack.defer(undo);
  try {
    if (former !== undefined) writeAttribute(`${pci.path}/driver/unbind`, pci.address);
    writeAttribute(`${pci.sysfs}/bus/pci/drivers_probe`, pci.address);
  } catch (error) {
    throw notBound(pci, (error as Error).message);
  }
  if (pci.driver !== VFIO_DRIVER) throw notBound(pci, "see the kernel's log (dmesg)");
  log.info(`ivshmem ${pci.address} bound to vfio-pci, before to ${former ?? "no driver"}`);
  const done = stack.move();
  return { changed: true, [Symbol.dispose]: () => done.dispose() };
}

function notBound(pci: PciFunction, reason: string): VmsgError {
  return new VmsgError("BIND", `ivshmem ${pci.address} cannot be bound to vfio-pci: ${reason}`);
}

/** Is vfio allowed to do without an IOMMU? Undefined where the kernel does not know of it. */
function unsafeMode(pci: PciFunction): boolean | undefined {
  const mode = readAttribute(`${pci.sysfs}/module/vfio/parameters/enable_unsafe_noiommu_mode`);
  return mode === undefined ? undefined : mode === "Y";
}

/** Without an IOMMU group vfio-pci takes no function, but in its unsafe mode makes one up. */
function checkIommu(pci: PciFunction): void {
  if (pci.iommuGroup !== undefined) return;
  const unsafe = unsafeMode(pci);
  if (unsafe === true) return;
  const unsafely = unsafe === undefined
    ? ""
    : "; or, without any protection, echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
  throw new VmsgError(
    "NO_IOMMU",
    `ivshmem ${pci.address} has no IOMMU group, which vfio needs: boot with intel_iommu=on or ` +
      `amd_iommu=on (the machine's QEMU needs -device intel-iommu)${unsafely}; or do without vfio`,
  );
}

/**
 * The IOMMU group of a function that is bound to vfio-pci.
 *
 * @throws VmsgError NO_IOMMU or NOT_BOUND, which says how to bind it
 */
export function vfioGroup(pci: PciFunction): string {
  const { address, path, driver } = pci;
  if (driver !== VFIO_DRIVER) {
    checkIommu(pci);
    const unbind = driver === undefined ? "" : `echo ${address} > ${path}/driver/unbind; `;
    throw new VmsgError(
      "NOT_BOUND",
      `ivshmem ${address} is bound to ${driver ?? "no driver"}, not to vfio-pci: give the option ` +
        `bind, or do it yourself: echo vfio-pci > ${path}/driver_override; ${unbind}` +
        `echo ${address} > ${pci.sysfs}/bus/pci/drivers_probe`,
    );
  }
  const group = pci.iommuGroup;
  if (group === undefined) throw notBound(pci, "it has no IOMMU group");
  return group;
}
