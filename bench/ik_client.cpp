// A client of ik_llama.cpp that times what lines of standard input ask for: `client MODEL HOST:PORT CONTEXT BATCH
// FLASH`. All layers go to the server. Lines and answers are those of the stock driver's `timing`:
//
//   load          loads the model and frees it
//   open          loads the model and makes a context, for what follows
//   decode B N    decodes N batches of B random tokens
//   clear         forgets them

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-rpc.h"
#include "llama.h"

namespace {

constexpr int kAllLayers = 999;
std::string g_log;

[[noreturn]] void fail(const std::string& what) {
    std::cerr << g_log.substr(g_log.size() > 4000 ? g_log.size() - 4000 : 0) << "client: " << what << "\n";
    std::exit(1);
}

// The build counts its own CPU as the first device: its share is 0.
llama_model* load(const char* path, const std::string& endpoint) {
    if (ggml_backend_rpc_get_device_count(endpoint.c_str()) == 0) fail("no device at " + endpoint);
    static std::string server;
    static std::vector<float> split;
    server = endpoint + "|0";
    split.assign(llama_max_devices() < 2 ? 2 : llama_max_devices(), 0.0F);
    split[1] = 1.0F;
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = kAllLayers;
    params.tensor_split = split.data();
    params.rpc_servers = server.c_str();
    llama_model* model = llama_model_load_from_file(path, params);
    if (model == nullptr) fail(std::string("cannot load ") + path);
    return model;
}

class Session {
  public:
    Session(const char* path, const std::string& endpoint, int n_ctx, int n_batch, bool flash)
        : model_(load(path, endpoint)) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = static_cast<uint32_t>(n_ctx);
        params.n_batch = params.n_ubatch = static_cast<uint32_t>(n_batch);
        params.flash_attn = flash;
        context_ = llama_init_from_model(model_, params);
        if (context_ == nullptr) fail("cannot create a context");
        batch_ = llama_batch_init(n_batch, 0, 1);
        n_vocab_ = static_cast<unsigned>(llama_vocab_n_tokens(llama_model_get_vocab(model_)));
    }
    ~Session() {
        llama_batch_free(batch_);
        llama_free(context_);
        llama_free_model(model_);
    }

    void clear() {
        llama_kv_cache_clear(context_);
        n_past_ = 0;
    }

    void decode(int count) {
        batch_.n_tokens = count;
        for (int i = 0; i < count; i++) {
            seed_ = seed_ * 1664525U + 1013904223U;
            batch_.token[i] = static_cast<llama_token>(3 + (seed_ >> 8) % (n_vocab_ - 3));
            batch_.pos[i] = n_past_ + i;
            batch_.n_seq_id[i] = 1;
            batch_.seq_id[i][0] = 0;
            batch_.logits[i] = i == count - 1;
        }
        if (llama_decode(context_, batch_) != 0) fail("llama_decode failed");
        if (llama_get_logits_ith(context_, count - 1) == nullptr) fail("no logits");  // waits for the result
        n_past_ += count;
    }

  private:
    llama_model* model_;
    llama_context* context_;
    llama_batch batch_;
    unsigned n_vocab_, seed_ = 1;
    int n_past_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 6) fail("usage: client MODEL HOST:PORT CONTEXT BATCH on|off");
    llama_log_set([](ggml_log_level, const char* text, void*) { g_log += text; }, nullptr);
    llama_backend_init();
    Session* session = nullptr;
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string verb;
        int batch = 0, count = 0;
        words >> verb >> batch >> count;
        const auto start = std::chrono::steady_clock::now();
        if (verb == "load") {
            llama_free_model(load(argv[1], argv[2]));
        } else if (verb == "open") {
            session =
                new Session(argv[1], argv[2], std::atoi(argv[3]), std::atoi(argv[4]), argv[5] == std::string("on"));
        } else if (session == nullptr) {
            fail(verb + " before open");
        } else if (verb == "clear") {
            session->clear();
        } else if (verb == "decode") {
            for (int i = 0; i < count; i++) session->decode(batch);
        } else {
            fail("no such line: " + line);
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        std::printf("{\"event\": \"%s\", \"seconds\": %.9f}\n", verb.c_str(), took.count());
        std::fflush(stdout);
    }
    delete session;
    return 0;
}
