/** Huge pages for a test. The pool is the machine's: whoever changes it keeps others from doing so until it is as before. */

const POOL = "/proc/sys/vm/nr_hugepages";

/** Makes the pool larger until it is disposed. Throws where it cannot be changed. */
export function growPool(pages: number): Disposable {
  const file = Deno.openSync(POOL, { read: true, write: true });
  const write = (count: number) => Deno.writeTextFileSync(POOL, `${count}`);
  try {
    file.lockSync(true);
    const before = Number(Deno.readTextFileSync(POOL));
    write(before + pages);
    return {
      [Symbol.dispose]() {
        write(before);
        file.close();
      },
    };
  } catch (error) {
    file.close();
    throw error;
  }
}
