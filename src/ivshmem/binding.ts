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
import { type PciFunction, readAttribute, writeAttribute } from "../linux/sysfs.ts";
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
 * @throws VmsgError NO_IOMMU, NO_VFIO, BIND; nothing is changed then
 */
export function bindToVfio(pci: PciFunction, log: Log): Binding {
  const former = pci.driver;
  if (former === VFIO_DRIVER) return { changed: false, [Symbol.dispose]() {} };
  checkIommu(pci);
  const drivers = `${pci.sysfs}/bus/pci/drivers`;
  if (readAttribute(`${drivers}/${VFIO_DRIVER}/new_id`) === undefined && !vfioIsThere(pci)) {
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

  using stack = new DisposableStack();
  stack.defer(undo);
  try {
    writeAttribute(`${pci.path}/driver_override`, VFIO_DRIVER);
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
