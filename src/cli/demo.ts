import type { Command } from "./command.ts";
export const demoCommand: Command = {
  name: "demo",
  summary: "s",
  description: "",
  options: [],
  examples: [],
  run: () => Promise.resolve(0),
};
