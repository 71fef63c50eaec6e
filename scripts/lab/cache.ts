/** Where this user's copies of things that can be fetched again lie. */

/** `$XDG_CACHE_HOME/vmsg` or `~/.cache/vmsg`, whether it is there or not; undefined without both. */
export function cacheDirectory(): string | undefined {
  const base = Deno.env.get("XDG_CACHE_HOME");
  if (base?.startsWith("/")) return `${base}/vmsg`;
  const home = Deno.env.get("HOME");
  return home ? `${home}/.cache/vmsg` : undefined;
}
