/**
 * The two modes in which the same guest tests run: direct, where the device process reads and writes the
 * guest's memory, and confined, where all it sees of the driver side is a segment.
 *
 * The tests are in `*_cases.ts`, each a function that registers them for a mode; `*_test.ts` of the same name
 * registers those of direct mode, confined_test.ts all of confined mode.
 */

/** See the head of this file. */
export interface Mode {
  /** In front of a test's name. */
  readonly prefix: string;
  readonly isConfined: boolean;
  /** More arguments of `vmsg device`. */
  readonly device: readonly string[];
  /** More arguments of `vmsg proxy` and `vmsg driver`. */
  readonly driverSide: readonly string[];
}

/** The device process sees the guest's whole memory. */
export const DIRECT: Mode = { prefix: "", isConfined: false, device: [], driverSide: [] };

/** @param segment its size, as `--segment` takes it */
export function confinedMode(segment: string): Mode {
  return {
    prefix: `confined, ${segment}: `,
    isConfined: true,
    device: ["--confined"],
    driverSide: ["--confined", "--segment", segment],
  };
}
