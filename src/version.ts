/** The version of vmsg. */
export const VERSION = "0.1.0";
