"""Prints what TensorBoard's own readers find in a log directory.

For each line on standard input, which names readers, all is read that is there by then, and one line of JSON
is printed: {reader: {tag: [[step, wall time, value], ...]}}. A number is given by the 32 bits of its
float32, a text as it is. The readers are

  accumulator  EventAccumulator, which goes on where it stopped the last time
  multiplexer  what tensorboard --load_fast=false shows
  server       tensorboard-data-server, what tensorboard shows
"""

import json
import logging
import os
import struct
import sys

import numpy
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, event_accumulator, plugin_event_multiplexer
from tensorboard.data import server_ingester
from tensorboard.util import grpc_util

ALL = 1 << 30


def number(x):
    with numpy.errstate(over="ignore"):
        return struct.unpack("<I", struct.pack("<f", numpy.float32(x)))[0]


def text(array):
    return "".join(x.decode() if isinstance(x, bytes) else x for x in array.ravel())


class Accumulator:
    def __init__(self, logdir, run):
        self.events = event_accumulator.EventAccumulator(os.path.join(logdir, run), size_guidance={"scalars": 0, "tensors": 0})

    def read(self):
        ea = self.events.Reload()
        return {t: [[e.step, e.wall_time, number(e.value)] for e in ea.Scalars(t)] for t in ea.Tags()["scalars"]}


def provided(provider, run):
    ctx, found = context.RequestContext(), {}
    for tags in provider.read_scalars(ctx, experiment_id="", plugin_name="scalars", downsample=ALL).get(run, {}).items():
        found[tags[0]] = [[d.step, d.wall_time, number(d.value)] for d in tags[1]]
    for tags in provider.read_tensors(ctx, experiment_id="", plugin_name="text", downsample=ALL).get(run, {}).items():
        found[tags[0]] = [[d.step, d.wall_time, text(d.numpy)] for d in tags[1]]
    return found


class Multiplexer:
    def __init__(self, logdir, run):
        self.logdir, self.run = logdir, run
        self.found = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={"scalars": 0, "text": 0})

    def read(self):
        self.found.AddRunsFromDirectory(self.logdir)
        self.found.Reload()
        return provided(data_provider.MultiplexerDataProvider(self.found, self.logdir), self.run)


class Server:
    def __init__(self, logdir, run):
        self.logdir, self.run = logdir, run

    def read(self):
        server = server_ingester.SubprocessServerDataIngester(
            server_binary=server_ingester.get_server_binary(),
            logdir=self.logdir,
            reload_interval=0,
            channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
            samples_per_plugin={"scalars": 0, "text": 0},
        )
        server.start()
        return provided(server.data_provider, self.run)


def main():
    logging.disable(logging.ERROR)
    logdir, run = sys.argv[1:]
    readers = {}
    for line in sys.stdin:
        out = {}
        for name in line.split():
            kind = {"accumulator": Accumulator, "multiplexer": Multiplexer, "server": Server}[name]
            out[name] = readers.setdefault(name, kind(logdir, run)).read()
        print(json.dumps(out), flush=True)


main()
