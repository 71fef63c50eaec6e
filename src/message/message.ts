/**
 * One message as a record, the same for every dialect.
 *
 * A codec fills a {@link Message} from a slot, a handler changes it, a codec writes it to another
 * slot; whoever sends or receives keeps one and reuses it, so nothing is allocated per message.
 * {@link Kind} numbers are ours: each dialect has its own ids for them (docs/wire.md 1.3).
 *
 * The payload is the union of all payloads, one name per meaning (`index` is a queue, a feature
 * block or a shared memory region). Behind every number is one element of a Float64Array: the codec,
 * which follows a table, reaches it by its position without a property look-up that changes with
 * every field, and an address above 2^31 does not become an object on the heap. A 64-bit value is
 * a Number; above 2^53 it has lost low bits, and whoever uses it as an address rejects it.
 */

/** A way of writing messages. */
export type Dialect = "v1" | "v1-2025" | "proto" | "rfc" | "rfc-q";

/** All of them, the default first. */
export const DIALECTS: readonly Dialect[] = ["v1", "v1-2025", "rfc", "rfc-q", "proto"];

/** Every message of every dialect. The values are positions in {@link Message}-indexed tables. */
export const Kind = {
  GET_DEVICE_INFO: 0,
  GET_DEVICE_FEATURES: 1,
  SET_DRIVER_FEATURES: 2,
  GET_CONFIG: 3,
  SET_CONFIG: 4,
  GET_DEVICE_STATUS: 5,
  SET_DEVICE_STATUS: 6,
  GET_VQUEUE: 7,
  SET_VQUEUE: 8,
  RESET_VQUEUE: 9,
  GET_SHM: 10,
  EVENT_CONFIG: 11,
  EVENT_AVAIL: 12,
  EVENT_USED: 13,
  // bus messages
  GET_DEVICES: 14,
  PING: 15,
  EVENT_DEVICE: 16,
  // dialect proto only, and what concerns an IOMMU in rfc-q
  CONNECT: 17,
  DISCONNECT: 18,
  GET_CONFIG_GENERATION: 19,
  IOMMU_ENABLE: 20,
  IOMMU_TRANSLATE: 21,
  IOMMU_INVALIDATE: 22,
  // about a kernel's bridge itself, see bridge_messages.ts
  MAP_ADD: 23,
  MAP_DEL: 24,
  ENDPOINT_ONLINE: 25,
  ENDPOINT_OFFLINE: 26,
  TOPOLOGY_RESET: 27,
  TOPOLOGY_DEV_ADD: 28,
  TOPOLOGY_COMMIT: 29,
  // between two vmsg processes only, see private.ts
  HELLO: 30,
  ADD_MEMORY: 31,
  REMOVE_MEMORY: 32,
  STOP_VQUEUE: 33,
  SET_VQUEUE_STATE: 34,
  SET_DOORBELLS: 35,
  SET_NOTIFIER: 36,
} as const;

/** One of the values of {@link Kind}. */
export type Kind = typeof Kind[keyof typeof Kind];

/** How many kinds there are: the length of a table indexed by kind. */
export const KIND_COUNT: number = Object.keys(Kind).length;

/**
 * SET_VQUEUE's state operation and GET_VQUEUE's flag: the queue is enabled. `v1-2025` writes neither;
 * its codec fills them in: SET_VQUEUE enables, and a queue with a size and a used ring is enabled.
 */
export const QUEUE_ENABLED: number = 1;
/** SET_VQUEUE's flags: what becomes of the state (0 stays disabled, 2 stays as it is), and which stored fields stay. */
export const QueueFlag = {
  STATE: 3,
  RESERVED_STATE: 3,
  KEEP_SIZE: 4,
  KEEP_DESCRIPTOR: 8,
  KEEP_DRIVER: 16,
  KEEP_DEVICE: 32,
  ALL: 63,
} as const;
/** ADD_MEMORY's flag: memory beside the bus's queues, no descriptor comes along. */
export const MEMORY_SEGMENT: number = 1;
/** ADD_MEMORY's flag: memory that the device side was given by `--memory`, no descriptor comes along. */
export const MEMORY_WINDOW: number = 2;
/** SET_VQUEUE_STATE's flag: the driver has used the queue before. */
export const QUEUE_GOES_ON: number = 1;
/** SET_NOTIFIER's flag: there is a kick, the descriptor with the ordinal. Without it notifications are in band. */
export const NOTIFIER_KICK: number = 1;
/** SET_NOTIFIER's flag: there is a call, the descriptor behind the kick. Without it nobody is called. */
export const NOTIFIER_CALL: number = 2;
/** SET_NOTIFIER's flag, by itself: the driver is called by the interrupt with that ordinal, and kicks in band. */
export const NOTIFIER_VECTOR: number = 4;
/** EVENT_DEVICE's states (docs/wire.md 3.2); `v1-2025` calls this one READY. */
export const DEVICE_ADDED: number = 1;
/** See {@link DEVICE_ADDED}. */
export const DEVICE_REMOVED: number = 2;

/** The longest message that a record holds: what the kernel's bridge takes. */
export const MAX_MESSAGE = 128;
/** Bytes of feature blocks, configuration data or device bitmap that fit in one, rounded up to 8. */
const MAX_DATA = MAX_MESSAGE - 8;
const UUID_BYTES = 16;

/** The names of the numbers in a payload, in the order of their values, and what they mean. */
export const FIELDS = [
  "index", // Queue; first feature block; shared memory region
  "count", // Feature blocks in feature messages, device bits in GET_DEVICES
  "deviceId", // The kind of device, 1 = net
  "vendorId", // Who made the device; 0x554d4551 is every QEMU device
  "featureBlocks", // 32-bit feature blocks the device has; `v1-2025` writes 32 times that
  "configSize", // Bytes of the configuration space
  "maxQueues", // Queues of the device, administration queues included
  "adminStart", // First administration queue
  "adminCount", // Administration queues
  "offset", // Byte in the configuration space or descriptor; GET_DEVICES: first device number
  "length", // Bytes. In a SET_CONFIG answer 0 = not applied
  "omitData", // 1 in a SET_CONFIG answer that has a length and no data (`v1`)
  "generation", // The generation of the configuration space
  "status", // Device status bits
  "maxSize", // Most entries the queue may have, 0 = no such queue
  "queueSize", // Entries the queue has
  "flags", // QUEUE_ENABLED, MEMORY_SEGMENT, NOTIFIER_KICK and the like
  "mustBeZero", // SET_VQUEUE's word without a meaning, which `v1` looks at all the same
  "descriptorAddress", // Bus address of the descriptor area
  "driverAddress", // Bus address of the driver area (avail ring)
  "deviceAddress", // Bus address of the device area (used ring)
  "nextOffset", // EVENT_AVAIL: next offset or index; GET_DEVICES: where to go on, 0 = no more
  "nextWrap", // EVENT_AVAIL: wrap counter of a packed ring
  "data", // PING's word
  "address", // Bus address of memory; the address to translate
  "physicalAddress", // The translated address
  "prot", // Access of a translation: bit 0 read, bit 1 write; 0 = not mapped
  "number", // EVENT_DEVICE: the device number it is about
  "state", // EVENT_DEVICE: DEVICE_ADDED or DEVICE_REMOVED. IOMMU_ENABLE: 1 = on
  "epoch", // The sender's epoch, a random number below 2^53; a kernel's bridge: since it was last online
  "peerEpoch", // The receiver's epoch as the sender knows it
  "nonce", // The lease's token, see private.ts
  "version", // `proto`: revision of the device. HELLO: version of the private messages
  "capabilities", // HELLO: what the sender can do, one bit each
  "ordinal", // Which descriptor of this connection
  "memoryDevice", // The device number a memory table or a queue belongs to
  "base", // A queue's next index
  "wrap", // A packed queue's wrap counters
  "result", // 0, or the errno of what failed
  "map", // A kernel's bridge: which window of memory
  "sequence", // Which publication of it
  "mapLength", // Bytes of it that can be mapped
  "maxMessage", // The endpoint's longest message
  "reason", // Why the endpoint went
] as const;

/** One of {@link FIELDS}. */
export type Field = typeof FIELDS[number];

/** What a message says, by name. */
export type Fields = Readonly<Partial<Record<Field | "device" | "token", number>>> & {
  readonly words?: ArrayLike<number>;
  readonly bytes?: ArrayLike<number>;
};

const POSITIONS: ReadonlyMap<Field, number> = new Map(FIELDS.map((field, n) => [field, n]));

/** Where a field's value is in {@link Message.numbers}. */
export function positionOf(field: Field): number {
  return POSITIONS.get(field)!;
}

/** Zeros for all of a record: up to 512 bytes are copied in less time than fill() takes. */
const ZEROS = new Float64Array(FIELDS.length + (MAX_DATA + UUID_BYTES) / 8);

/** The numbers of a payload by name: {@link FIELDS} says what they mean, the accessors are made below. */
export interface Message extends Record<Field, number> {}

/** One message. Fields that its kind does not use are 0. */
export class Message {
  /** Which message it is. */
  kind: Kind = Kind.GET_DEVICE_INFO;
  /** True for the answer to a request, false for a request or an event. */
  response = false;
  /** The dialect it was last decoded from or encoded to; only text depends on it. */
  dialect: Dialect | undefined = undefined;
  /** The device number; 0 for a bus message. */
  device = 0;
  /** Pairs an answer with its request; 0 in events and in dialects without tokens. */
  token = 0;
  /** Bytes on the wire, header included; set by encode and decode. */
  size = 0;

  /** Values of the number fields; use the names, this is for codecs. */
  readonly numbers: Float64Array;
  /**
   * Feature blocks: element n is block `index + n`, `count` of them are meant. In `v1-2025` there may be
   * more: a Rust front end answers two blocks and counts one, and whoever asked for two may read two.
   */
  readonly words: Uint32Array;
  /**
   * Configuration data (`length` bytes), or GET_DEVICES' bitmap (`count` bits, low bit first). In the same
   * place as {@link words}: no message has both, and a reset has less to zero.
   */
  readonly bytes: Uint8Array;
  /** The device's UUID in GET_DEVICE_INFO, all zero if it has none. */
  readonly uuid: Uint8Array;
  /** All of the above, to be zeroed with one call. */
  readonly #everything: Float64Array;

  /** Makes a record with every field 0. */
  constructor() {
    const numbers = 8 * FIELDS.length;
    const buffer = new ArrayBuffer(8 * ZEROS.length);
    this.#everything = new Float64Array(buffer);
    this.numbers = new Float64Array(buffer, 0, FIELDS.length);
    this.words = new Uint32Array(buffer, numbers, MAX_DATA / 4);
    this.bytes = new Uint8Array(buffer, numbers, MAX_DATA);
    this.uuid = new Uint8Array(buffer, numbers + MAX_DATA, UUID_BYTES);
  }

  /** Sets fields, and `words` and `bytes` from their beginning on. */
  say({ words, bytes, ...numbers }: Fields): void {
    Object.assign(this, numbers);
    if (words !== undefined) this.words.set(words);
    if (bytes !== undefined) this.bytes.set(bytes);
  }

  /** Starts a new message: all fields become 0. */
  reset(kind: Kind, response: boolean): void {
    this.kind = kind;
    this.response = response;
    this.dialect = undefined;
    this.device = 0;
    this.token = 0;
    this.size = 0;
    this.#everything.set(ZEROS);
  }
}

for (const [field, position] of POSITIONS) {
  Object.defineProperty(Message.prototype, field, {
    get(this: Message): number {
      return this.numbers[position]!;
    },
    set(this: Message, value: number): void {
      this.numbers[position] = value;
    },
  });
}
