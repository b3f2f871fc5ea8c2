// Carries out a plan (JSON on stdin, outcomes on stdout) with @grpc/grpc-js, on the contract as it is published.
import { readFileSync } from "node:fs";

import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { protoPath as health } from "grpc-health-check";

const plan = JSON.parse(readFileSync(0, "utf8"));
const own = ["tidemark/v1/scoring.proto", "tidemark/v1/events.proto"];
const files = [...own, "google/rpc/status.proto", "google/rpc/error_details.proto", health];
const contract = loadSync(files, { includeDirs: [plan.protos] });
const services = Object.values(contract).filter((definition) => !("format" in definition));
const methods = Object.fromEntries(services.flatMap(Object.values).map((method) => [method.path, method]));
const gzip = { "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip };
const client = new grpc.Client(plan.target, grpc.credentials.createInsecure(), plan.gzip ? gzip : {});

const STREAMED = 3; // So often the request of a stream is sent.

function infosOf(details) {
  return contract["google.rpc.Status"]
    .deserialize(details)
    .details.filter((detail) => detail.type_url === "type.googleapis.com/google.rpc.ErrorInfo")
    .map((detail) => contract["google.rpc.ErrorInfo"].deserialize(detail.value))
    .map((info) => [info.domain, info.reason, info.metadata?.field ?? ""]);
}

function carryOut([path, request], round) {
  const { requestSerialize, requestDeserialize, responseSerialize, responseDeserialize, ...method } = methods[path];
  const message = requestDeserialize(Buffer.from(request, "base64"));
  const metadata = new grpc.Metadata();
  for (const [name, value] of round.metadata)
    metadata.add(name, name.endsWith("-bin") ? Buffer.from(value, "base64") : value);
  const options = { deadline: Date.now() + round.timeout_ms };
  const call = [path, requestSerialize, responseDeserialize, message, metadata, options];
  return new Promise((resolve) => {
    const replies = [];
    const keep = (reply) => {
      replies.push(responseSerialize(reply).toString("base64"));
      if (replies.length === round.cancel_after) running.cancel();
    };
    const end = (_, reply) => reply && keep(reply);
    const running = method.requestStream
      ? client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, metadata, options)
      : method.responseStream
        ? client.makeServerStreamRequest(...call)
        : client.makeUnaryRequest(...call, end);
    if (method.responseStream) running.on("data", keep).on("error", () => {});
    if (method.requestStream) {
      for (let n = 0; n < STREAMED; n++) running.write(message);
      running.end();
    }
    const timer = round.cancel_ms && setTimeout(() => running.cancel(), round.cancel_ms);
    running.on("status", ({ code, details: text, metadata: trailers }) => {
      clearTimeout(timer);
      const [details] = trailers.get("grpc-status-details-bin");
      const infos = details ? infosOf(details) : [];
      resolve({ code, message: text, details: details?.toString("base64") ?? "", infos, replies });
    });
  });
}

const outcomes = [];
for (const round of plan.rounds) outcomes.push(await Promise.all(round.calls.map((call) => carryOut(call, round))));
client.close();
console.log(JSON.stringify(outcomes));
