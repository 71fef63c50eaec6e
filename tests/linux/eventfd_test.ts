import { assertEquals } from "@std/assert";
import { clearEventFd, createEventFd, signalEventFd } from "../../src/linux/eventfd.ts";
import { EPOLLIN, Reactor } from "../../src/linux/reactor.ts";
import { cleanTest } from "../support/leaks.ts";

cleanTest("eventfd: signals are one wake-up until it is cleared", () => {
  using reactor = new Reactor();
  using bell = createEventFd();
  using other = createEventFd();
  let rung = 0;
  let turns = 0;
  reactor.watch(bell, EPOLLIN, () => void rung++);
  reactor.watch(other, EPOLLIN, () => void turns++);
  // The other one keeps every turn from blocking.
  signalEventFd(other);
  reactor.turn();
  assertEquals([rung, turns], [0, 1]);
  for (let i = 0; i < 3; i++) signalEventFd(bell);
  reactor.turn();
  assertEquals([rung, turns], [1, 2]);
  reactor.turn();
  assertEquals([rung, turns], [2, 3], "level-triggered until it is cleared");
  clearEventFd(bell);
  clearEventFd(bell);
  reactor.turn();
  assertEquals([rung, turns], [2, 4]);
  signalEventFd(bell);
  reactor.turn();
  assertEquals([rung, turns], [3, 5]);
});
