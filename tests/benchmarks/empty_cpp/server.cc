// An empty unary call on gRPC's C++ server, callback API, with the contract's messages: what gRPC costs without Python.
//
// tests/benchmarks/peer_cpp.py builds and starts it. By hand, with Debian's g++, pkg-config, libgrpc++-dev and
// protobuf-compiler-grpc, from the root of the checkout:
//
//   mkdir -p build/empty_cpp
//   protoc -Iprotos --cpp_out=build/empty_cpp --grpc_out=build/empty_cpp \
//     --plugin=protoc-gen-grpc="$(command -v grpc_cpp_plugin)" google/rpc/status.proto tidemark/v1/scoring.proto
//   g++ -O2 -std=c++17 -Ibuild/empty_cpp $(find build/empty_cpp -name '*.cc') tests/benchmarks/empty_cpp/server.cc \
//     $(pkg-config --cflags --libs grpc++ protobuf) -o build/empty_cpp/server

#include <grpcpp/grpcpp.h>

#include <csignal>
#include <iostream>

#include "tidemark/v1/scoring.grpc.pb.h"

namespace v1 = tidemark::v1;

class Empty final : public v1::ScoringService::CallbackService {
  grpc::ServerUnaryReactor* ScoreCustomer(grpc::CallbackServerContext* context, const v1::ScoreCustomerRequest*,
                                          v1::ScoreCustomerResponse*) override {
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

int main() {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);  // before gRPC starts threads, which inherit it

  Empty service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  if (!server || port == 0) return 1;
  std::cerr << "serving on 127.0.0.1:" << port << std::endl;

  int received = 0;
  sigwait(&stop, &received);
  server->Shutdown(std::chrono::system_clock::now());
}
