"""The far end: a docker-registry, an nginx for the peers, and shaped links in front of them.

Each counts what it sends: the links by themselves, the servers in their access logs.
"""

import json
import os
import signal
import subprocess

from processes import Process, free_port, listens

REGISTRY = """version: 0.1
log: {{level: info, formatter: json, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {storage}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""

NGINX = """daemon off;
user root;
worker_processes 2;
pid {work}/nginx.pid;
error_log {work}/nginx.error;
events {{ }}
http {{
    log_format counted '$request_method $bytes_sent';
    access_log {log} counted;
    sendfile on;
    keepalive_requests 1000000;
    client_body_temp_path {work}/nginx.body;
    proxy_temp_path {work}/nginx.proxy;
    fastcgi_temp_path {work}/nginx.fastcgi;
    uwsgi_temp_path {work}/nginx.uwsgi;
    scgi_temp_path {work}/nginx.scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; autoindex on; disable_symlinks off; }}
}}
"""


class Registry(Process):
    """Debian's docker-registry on a free port."""

    def __init__(self, work, storage):
        self.port = free_port()
        config = os.path.join(work, "registry.yml")
        self.access_log = os.path.join(work, "registry.log")
        with open(config, "w") as file:
            file.write(REGISTRY.format(storage=storage, port=self.port))
        super().__init__(["docker-registry", "serve", config], self.access_log)
        self.wait_until(lambda: listens(self.port), "docker-registry")

    def counts(self, since):
        """Requests and bytes that were logged from position `since` on."""
        requests = sent = 0
        for line in lines_from(self.access_log, since):
            if '"response completed"' in line:
                entry = json.loads(line)
                requests += 1
                if entry["http.request.method"] == "GET":
                    sent += int(entry.get("http.response.written", 0))
        return requests, sent


class Nginx(Process):
    """nginx over a folder on a free port."""

    def __init__(self, work, root):
        self.port = free_port()
        self.access_log = os.path.join(work, "nginx.log")
        config = os.path.join(work, "nginx.conf")
        with open(config, "w") as file:
            file.write(NGINX.format(work=work, log=self.access_log, port=self.port, root=root))
        env = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin")
        super().__init__(["nginx", "-c", config], os.path.join(work, "nginx.said"), env)
        self.wait_until(lambda: listens(self.port), "nginx")

    def counts(self, since):
        entries = [line.split() for line in lines_from(self.access_log, since)]
        return len(entries), sum(int(sent) for _, sent in entries)


class Link(Process):
    """A shaped link to a port; one for each measurement, so that its counts are that one's."""

    def __init__(self, bench, port):
        argv = [bench.link_binary, "--to", f"127.0.0.1:{port}"]
        argv += ["--rtt-ms", str(bench.rtt_ms), "--rate", f"{bench.rate}"]
        super().__init__(argv, os.path.join(bench.work, "link.log"), stdout=subprocess.PIPE)
        self.port = int(self.child.stdout.readline().decode().rsplit(":", 1)[1])

    def counts(self):
        """Ends the link; returns requests and bytes towards the client."""
        self.child.send_signal(signal.SIGTERM)
        report = json.loads(self.child.stdout.readline())
        return report["requests"], report["bytes_down"]


class Way:
    """The way to a server for one measurement: straight or over a link; counts what comes back."""

    def __init__(self, bench, server, shaped):
        self.server = server
        self.link = Link(bench, server.port) if shaped else None
        self.since = os.path.getsize(server.access_log) if os.path.exists(server.access_log) else 0
        self.port = self.link.port if shaped else server.port

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.link:
            self.link.end()

    def counts(self):
        """Requests and bytes; the way is closed then."""
        return self.link.counts() if self.link else self.server.counts(self.since)


def lines_from(path, since):
    with open(path, "rb") as file:
        file.seek(since)
        return file.read().decode(errors="replace").splitlines()
