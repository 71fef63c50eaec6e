/**
 * Rules that implementations in use are known to break (docs/wire.md, 2 and 3), so that who finds one broken need
 * not search. They are told beside the failure, which stays one.
 */

/** By the number of the rule. */
export const QUIRKS: Readonly<Record<string, string>> = {
  G3: "QEMU of 2025 has buffers of 48 bytes and does not answer longer requests",
  G8: "Linux of 2025 sends token 1 with every request, its AMP bus 0",
  V2: "QEMU of 2025 answers GET_VQUEUE with 1024 also for a queue that there is not",
  V19: "QEMU of 2025 answers GET_VQUEUE with 1024 also for a queue that there is not",
  R12: "QEMU's vhost-user network card has a configuration of its own, and does not read it again",
  R14:
    "Linux's network driver, and QEMU's and User-Mode Linux's vhost-user, reset no device that needs it",
  R27: "Linux drops an EVENT_CONFIG that names a range without its data",
  R37: "Linux gives a device up for good when a request fails",
  B9: "QEMU of 2025 answers GET_DEVICES with 46 bytes for 32 devices",
};
