/** The subcommands. A file is loaded when its subcommand is used. */

import type { Command } from "./command.ts";
import type { PlaneCommand } from "./plane.ts";

type Load<C> = () => Promise<C>;

export const PLANES = {
  device: async () => (await import("./device.ts")).deviceCommand,
  proxy: async () => (await import("./proxy.ts")).proxyCommand,
  driver: async () => (await import("./driver.ts")).driverCommand,
  bridge: async () => (await import("./bridge.ts")).bridgeCommand,
  check: async () => (await import("./check.ts")).checkCommand,
  "ivshmem-server": async () => (await import("./ivshmem_server.ts")).ivshmemServerCommand,
} as const satisfies Readonly<Record<string, Load<PlaneCommand>>>;

export type PlaneName = keyof typeof PLANES;

/** All of them, in the order of `vmsg --help`. */
export const COMMANDS: Readonly<Record<string, Load<Command | PlaneCommand>>> = {
  ...PLANES,
  ctl: async () => (await import("./ctl.ts")).ctlCommand,
  demo: async () => (await import("./demo.ts")).demoCommand,
  "xen-acpi": async () => (await import("./xen_acpi.ts")).xenAcpiCommand,
  top: async () => (await import("./top.ts")).topCommand,
  inspect: async () => (await import("./inspect.ts")).inspectCommand,
  trace: async () => (await import("./trace.ts")).traceCommand,
  doctor: async () => (await import("./doctor.ts")).doctorCommand,
};
