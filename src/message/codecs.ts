/** The codecs, one per dialect, made when this file loads and shared: they hold no state. */

import type { Codec } from "./codec.ts";
import type { Dialect } from "./layout.ts";
import { ProtoCodec } from "./proto.ts";
import { Revision1Codec } from "./revision1.ts";

const CODECS: Readonly<Record<Dialect, Codec>> = {
  v1: new Revision1Codec("v1"),
  "v1-2025": new Revision1Codec("v1-2025"),
  proto: new ProtoCodec(),
};

/** The codec of a dialect. */
export function codecFor(dialect: Dialect): Codec {
  return CODECS[dialect];
}
