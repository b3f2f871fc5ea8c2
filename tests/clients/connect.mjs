// Carries out a plan (JSON on stdin, outcomes on stdout) with Connect's gRPC client, on descriptors: no generated code.
import { readFileSync } from "node:fs";

import { createFileRegistry, fromBinary, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { ConnectError, createClient, encodeBinaryHeader } from "@connectrpc/connect";
import { compressionGzip, createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";

const plan = JSON.parse(readFileSync(0, "utf8"));
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, Buffer.from(plan.descriptors, "base64")));
const baseUrl = `http://${plan.target}`;
const sessionManager = new Http2SessionManager(baseUrl);
const gzip = { sendCompression: compressionGzip, compressMinBytes: 0 };
const transport = createGrpcTransport({ baseUrl, sessionManager, ...(plan.gzip ? gzip : {}) });

const STREAMED = 3; // So often the request of a stream is sent.

async function* several(message) {
  for (let n = 0; n < STREAMED; n++) yield message;
}

async function carryOut([path, request], round) {
  const [, serviceName, name] = path.split("/");
  const service = registry.getService(serviceName);
  const { input, output, localName, methodKind } = service.methods.find((method) => method.name === name);
  const headers = new Headers();
  for (const [key, value] of round.metadata)
    headers.append(key, key.endsWith("-bin") ? encodeBinaryHeader(Buffer.from(value, "base64")) : value);
  const cancelling = new AbortController();
  const timer = round.cancel_ms && setTimeout(() => cancelling.abort(), round.cancel_ms);
  const options = { headers, timeoutMs: round.timeout_ms, signal: cancelling.signal };
  const replies = [];
  const keep = (reply) => {
    replies.push(Buffer.from(toBinary(output, reply)).toString("base64"));
    if (replies.length === round.cancel_after) cancelling.abort();
  };
  try {
    const message = fromBinary(input, Buffer.from(request, "base64"));
    const sent = methodKind === "bidi_streaming" ? several(message) : message;
    const reply = createClient(service, transport)[localName](sent, options);
    if (methodKind === "unary") keep(await reply);
    else for await (const one of reply) keep(one);
    return { code: 0, message: "", details: "", infos: [], replies };
  } catch (reason) {
    const error = ConnectError.from(reason);
    const infos = error.findDetails(registry.getMessage("google.rpc.ErrorInfo"));
    return {
      code: error.code,
      message: error.rawMessage,
      details: error.metadata.get("grpc-status-details-bin") ?? "",
      infos: infos.map((info) => [info.domain, info.reason, info.metadata.field ?? ""]),
      replies,
    };
  } finally {
    clearTimeout(timer);
  }
}

const outcomes = [];
for (const round of plan.rounds) outcomes.push(await Promise.all(round.calls.map((call) => carryOut(call, round))));
sessionManager.abort();
console.log(JSON.stringify(outcomes));
