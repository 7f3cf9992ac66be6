"""Training helpers: resumable runs on a time budget, averaged weights, schedules."""

import copy
import json
import os
import time

import torch


def atomic_save(value, path):
    torch.save(value, path + ".part")
    os.replace(path + ".part", path)


class Average:
    """Exponential average of the weights; buffers are copied."""

    def __init__(self, model, decay=0.998):
        self.model, self.decay, self.steps = copy.deepcopy(model).eval().requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model):
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for a, p in zip(self.model.parameters(), model.parameters()):
            a.lerp_(p.detach(), 1 - decay)
        for a, b in zip(self.model.buffers(), model.buffers()):
            a.copy_(b)


class Run:
    """Counts the minutes spent training, saves every so often and resumes."""

    def __init__(self, path, model, optimizer, minutes, lr, final=0.02, flat=0.3, warmup=50, save_every=100.0):
        self.path, self.model, self.optimizer = path, model, optimizer
        self.average = Average(model)
        self.minutes, self.lr, self.final, self.flat, self.warmup, self.save_every = minutes, lr, final, flat, warmup, save_every
        self.step, self.spent, self.log = 0, 0.0, []
        os.makedirs(path, exist_ok=True)
        file = os.path.join(path, "last.pt")
        if os.path.exists(file):
            saved = torch.load(file, weights_only=False)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            self.average.model.load_state_dict(saved["average"])
            self.average.steps = self.step = saved["step"]
            self.spent, self.log = saved["spent"], saved["log"]
        self.clock = self.saved = time.time()

    @property
    def progress(self):
        return self.spent / (60 * self.minutes)

    def running(self):
        return self.progress < 1

    def begin_step(self):
        """Sets the learning rate: warm-up, flat, then linear down to `final`."""
        p = self.progress
        scale = 1 if p < self.flat else 1 + (self.final - 1) * min(1, (p - self.flat) / (1 - self.flat))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * scale * min(1, (self.step + 1) / self.warmup)

    def end_step(self):
        """Returns True when a checkpoint is due."""
        self.average.update(self.model)
        self.step += 1
        now = time.time()
        self.spent += now - self.clock
        self.clock = now
        return now - self.saved > self.save_every or not self.running()

    def save(self, **figures):
        figures = {"step": self.step, "minutes": round(self.spent / 60, 2), **figures}
        self.log.append(figures)
        print(json.dumps(figures), flush=True)
        atomic_save({"model": self.model.state_dict(), "average": self.average.model.state_dict(),
                     "optimizer": self.optimizer.state_dict(), "step": self.step, "spent": self.spent,
                     "log": self.log}, os.path.join(self.path, "last.pt"))
        self.clock = self.saved = time.time()
