/** Rules that implementations in use are known to break, so that who finds it need not search. */

/** By the number of the rule. */
export const QUIRKS: Readonly<Record<string, string>> = {};
