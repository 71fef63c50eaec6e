/**
 * A web server as small as one can be (HTTP/1.0, RFC 1945): one request, one answer, the connection ends.
 *
 *     GET /           a short page
 *     GET /bytes/N    N bytes, up to 10^12, of which byte i is i modulo 251
 *
 * HEAD works as well. The request line is kept, as much of it as we could have use for; header fields are
 * skipped to the empty line; what comes after it is ignored. A header of more than 16 KiB is refused.
 */

const LINE_SIZE_MAX = 128;
const HEADER_SIZE_MAX = 16384;
const BYTES_DIGITS_MAX = 12;
/** Room that an answer's header and page need at most. */
export const HTTP_HEAD_SIZE_MAX = 512;

const CARRIAGE_RETURN = 0x0d;
const LINE_FEED = 0x0a;

const PAGE = `<!doctype html>
<title>vmsg</title>
<h1>vmsg responder</h1>
<p>GET /bytes/N sends N bytes; byte i is i modulo 251.
`;

/** A request that is being received. */
export class HttpRequest {
  readonly #line = new Uint8Array(LINE_SIZE_MAX);
  #lineLength = 0;
  #lines = 0;
  /** Bytes of the present line, the end of line not counted. */
  #column = 0;
  #size = 0;
  /** Bytes of the body that follow the head of the answer. */
  bodyLength = 0;
  /** Its empty line was there, or it grew too long; the answer can be written. */
  complete = false;

  /** Waits for a new one. */
  clear(): void {
    this.#lineLength = 0;
    this.#lines = 0;
    this.#column = 0;
    this.#size = 0;
    this.bodyLength = 0;
    this.complete = false;
  }

  /** Takes the bytes in [start, end); true if they completed the request. */
  receive(bytes: Uint8Array, start: number, end: number): boolean {
    for (let at = start; at < end && !this.complete; at++) {
      const byte = bytes[at];
      this.#size++;
      if (byte === LINE_FEED) {
        // An empty line before the request is skipped (RFC 9112 2.2).
        if (this.#column > 0) this.#lines++;
        else if (this.#lines > 0) this.complete = true;
        this.#column = 0;
      } else if (byte !== CARRIAGE_RETURN) {
        if (this.#lines === 0 && this.#lineLength < LINE_SIZE_MAX) {
          this.#line[this.#lineLength++] = byte;
        }
        this.#column++;
      }
      if (this.#size > HEADER_SIZE_MAX) this.complete = true;
    }
    return this.complete;
  }

  /** Writes the head of the answer, the page included if that is asked for, and returns its length. */
  writeAnswer(head: Uint8Array): number {
    const line = String.fromCharCode(...this.#line.subarray(0, this.#lineLength));
    const [, method, path] = /^([A-Z]+) (\S+) HTTP\/1\.\d$/.exec(line) ?? [];
    let status = "200 OK";
    let type = "text/html";
    let page = "";
    let bytes = 0;
    const digits = path === undefined ? undefined : /^\/bytes\/(\d+)$/.exec(path)?.[1];
    if (path === undefined || this.#size > HEADER_SIZE_MAX) status = "400 Bad Request";
    else if (method !== "GET" && method !== "HEAD") status = "501 Not Implemented";
    else if (path === "/") page = PAGE;
    else if (digits === undefined || digits.length > BYTES_DIGITS_MAX) status = "404 Not Found";
    else {
      type = "application/octet-stream";
      bytes = Number(digits);
    }
    if (status !== "200 OK") {
      type = "text/plain";
      page = `${status}\n`;
    }
    const fields = `HTTP/1.0 ${status}\r\nServer: vmsg\r\nContent-Type: ${type}\r\n` +
      `Content-Length: ${page.length + bytes}\r\nConnection: close\r\n\r\n`;
    const withBody = method !== "HEAD";
    this.bodyLength = withBody ? bytes : 0;
    return new TextEncoder().encodeInto(withBody ? fields + page : fields, head).written;
  }
}
