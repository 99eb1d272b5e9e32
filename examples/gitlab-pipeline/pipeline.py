"""Runs the jobs of a pipeline file as its service would: pipeline.py FILE PROJECT FOLDER [OPTION…].

FILE is a .gitlab-ci.yml or a GitHub workflow. A GitLab job works in a copy of PROJECT with the artifacts of the jobs
before; the steps of a GitHub job share one copy. After a failure only jobs with `when: always` (`if: always()`) run.

  --set JOB:NAME=VALUE   another value of a variable, in the first attempt of this job
  --kill JOB:SECONDS     kills all processes of the first attempt of this job with SIGKILL, as a cancelled pipeline may

Prints a line for each job. The exit code is 1 if a job has failed.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import yaml


def gitlab_jobs(file):
    for stage in file["stages"]:
        for name, job in file.items():
            if isinstance(job, dict) and job.get("stage") == stage:
                yield {
                    "name": name,
                    "script": "\n".join(job["script"]),
                    "always": job.get("when") == "always",
                    "attempts": 1 + job.get("retry", 0),
                    "artifacts": job.get("artifacts", {}).get("paths", []),
                    "folder": name,
                }


def github_jobs(file):
    for job_name, job in file["jobs"].items():
        for step in job["steps"]:
            if "run" in step:
                always = step.get("if") == "always()"
                yield {
                    "name": step["name"], "script": step["run"], "always": always, "attempts": 1, "artifacts": [],
                    "folder": job_name,
                }


def variables_of(file):
    """The variables of the file. As in both services, the settings of the project (here: the environment) win."""
    result = dict(os.environ)
    for name, value in (file.get("variables") or file.get("env")).items():
        value = value.replace("${{ github.sha }}", os.environ["CI_COMMIT_SHORT_SHA"])
        value = re.sub(r"\$\{\{ vars\.(\w+) \}\}|\$(\w+)", lambda match: result[match[1] or match[2]], value)
        result.setdefault(name, value)
    return result


def run(job, folder, environment, kill_after):
    """Runs a job in a process group of its own. Returns the exit code."""
    process = subprocess.Popen(
        ["/bin/bash", "-e", "-c", job["script"]], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("project")
    parser.add_argument("folder")
    parser.add_argument("--set", default="")
    parser.add_argument("--kill", default="")
    options = parser.parse_args()
    with open(options.file, encoding="utf-8") as text:
        file = yaml.safe_load(text)
    variables = variables_of(file)
    jobs = list(gitlab_jobs(file) if "stages" in file else github_jobs(file))
    artifacts = os.path.join(options.folder, "artifacts")
    os.makedirs(artifacts)
    failed = False
    for job in jobs:
        if failed and not job["always"]:
            continue
        folder = os.path.join(options.folder, job["folder"])
        if not os.path.exists(folder):
            shutil.copytree(options.project, folder)
        shutil.copytree(artifacts, folder, dirs_exist_ok=True)
        for attempt in range(job["attempts"]):
            environment, kill_after = dict(variables), None
            if attempt == 0 and options.set.startswith(f"{job['name']}:"):
                name, _, value = options.set.partition(":")[2].partition("=")
                environment[name] = value
            if attempt == 0 and options.kill.startswith(f"{job['name']}:"):
                kill_after = float(options.kill.partition(":")[2])
            began = time.monotonic()
            status = run(job, folder, environment, kill_after)
            word = "killed" if status == -signal.SIGKILL else f"exit code {status}"
            print(f"job {job['name']}: {word}, {time.monotonic() - began:.2f} s", flush=True)
            if status == 0:
                break
        failed |= status != 0
        if status == 0:
            for path in job["artifacts"]:
                shutil.copytree(os.path.join(folder, path), os.path.join(artifacts, path), dirs_exist_ok=True)
        if job["folder"] == job["name"]:
            shutil.rmtree(folder)
    shutil.rmtree(options.folder)
    sys.exit(failed)


main()
