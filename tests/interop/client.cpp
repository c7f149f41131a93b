// A client of any llama.cpp (or, with PEER_IK, ik_llama.cpp), compiled against that version's own headers and
// libraries: `client MODEL FLASH THREADS OUT [HOST:PORT ...]`. Without servers it computes on the local CPU.
//
// It answers lines of standard input on standard output, so that a test decides what comes next while the session
// stays open:
//
//   text WORDS     ids I ...       the tokens of a text, start token first
//   batch I ...    top I           decodes the tokens; a float32 row of logits, the last token's, is appended to OUT
//   piece I ...    piece HEX       the bytes of tokens
//   clear          clear           forgets the sequence

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "ggml-backend.h"
#include "ggml-rpc.h"
#include "llama.h"

namespace {

constexpr int kContext = 1024;
constexpr int kAllLayers = 999;

std::string g_log;

[[noreturn]] void fail(const std::string& what) {
    std::cerr << g_log.substr(g_log.size() - std::min<size_t>(g_log.size(), 4000)) << "client: " << what << "\n";
    std::exit(1);
}

// Flash attention is a flag in old versions, an enumeration in new ones.
template <typename T, typename = void>
struct HasFlashType : std::false_type {};
template <typename T>
struct HasFlashType<T, std::void_t<decltype(T::flash_attn_type)>> : std::true_type {};

template <typename Params>
void set_flash(Params& params, bool on) {
    if constexpr (HasFlashType<Params>::value) {
        params.flash_attn_type = static_cast<decltype(params.flash_attn_type)>(on ? 1 : 0);
    } else {
        params.flash_attn = on;
    }
}

#ifdef PEER_IK

struct Servers {
    std::string names;
    std::vector<float> split;

    void add(const std::string& endpoint) {
        const uint32_t count = ggml_backend_rpc_get_device_count(endpoint.c_str());
        if (count == 0) fail("no device at " + endpoint);
        for (uint32_t i = 0; i < count; i++) {
            names += (names.empty() ? "" : ",") + endpoint + "|" + std::to_string(i);
            split.push_back(1.0F);
        }
    }
    // Without a GPU the build counts its CPU as the first device: its share is 0.
    void apply(llama_model_params& params) {
        params.n_gpu_layers = names.empty() ? 0 : kAllLayers;
        if (names.empty()) return;
        split.insert(split.begin(), 0.0F);
        split.resize(std::max(split.size(), llama_max_devices()));
        params.tensor_split = split.data();
        params.rpc_servers = names.c_str();
    }
};

void forget(llama_context* context) { llama_kv_cache_clear(context); }

int tokenize(const llama_vocab* vocab, const std::string& text, std::vector<llama_token>& ids) {
    const int room = static_cast<int>(ids.size());
    return llama_vocab_tokenize(vocab, text.c_str(), static_cast<int>(text.size()), ids.data(), room, true, false);
}

int token_piece(const llama_vocab* vocab, llama_token token, char* buffer, int room) {
    return llama_token_to_piece_vocab(vocab, token, buffer, room, 0, false);
}

#else

struct Servers {
    std::vector<ggml_backend_dev_t> devices;

    // Servers of several devices came with protocol 3; before, a server was a device. Both functions are found by name.
    void add(const std::string& endpoint) {
        const ggml_backend_reg_t rpc = ggml_backend_rpc_reg();
        if (void* found = ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server")) {
            const auto add_server = reinterpret_cast<ggml_backend_reg_t (*)(const char*)>(found);
            const ggml_backend_reg_t server = add_server(endpoint.c_str());
            if (server == nullptr) fail("no server at " + endpoint);
            for (size_t i = 0; i < ggml_backend_reg_dev_count(server); i++)
                devices.push_back(ggml_backend_reg_dev_get(server, i));
            return;
        }
        void* found = ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_device");
        if (found == nullptr) fail("this version cannot add a server");
        devices.push_back(reinterpret_cast<ggml_backend_dev_t (*)(const char*)>(found)(endpoint.c_str()));
    }
    void apply(llama_model_params& params) {
        params.n_gpu_layers = devices.empty() ? 0 : kAllLayers;
        devices.push_back(nullptr);
        params.devices = devices.data();
    }
};

void forget(llama_context* context) { llama_memory_clear(llama_get_memory(context), false); }

int tokenize(const llama_vocab* vocab, const std::string& text, std::vector<llama_token>& ids) {
    const int room = static_cast<int>(ids.size());
    return llama_tokenize(vocab, text.c_str(), static_cast<int>(text.size()), ids.data(), room, true, false);
}

int token_piece(const llama_vocab* vocab, llama_token token, char* buffer, int room) {
    return llama_token_to_piece(vocab, token, buffer, room, 0, false);
}

#endif

class Session {
  public:
    Session(llama_context* context, const llama_vocab* vocab, const char* out)
        : context_(context), vocab_(vocab), n_vocab_(llama_vocab_n_tokens(vocab)), out_(std::fopen(out, "wb")) {
        if (out_ == nullptr) fail(std::string("cannot write ") + out);
        batch_ = llama_batch_init(kContext, 0, 1);
    }

    std::string answer(const std::string& line) {
        const size_t space = line.find(' ');
        const std::string verb = line.substr(0, space);
        const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
        if (verb == "text") return text(rest);
        if (verb == "batch") return decode(numbers(rest));
        if (verb == "piece") return piece(numbers(rest));
        if (verb != "clear") fail("no such line: " + line);
        forget(context_);
        n_past_ = 0;
        return "clear";
    }

  private:
    static std::vector<llama_token> numbers(const std::string& list) {
        std::istringstream stream(list);
        std::vector<llama_token> values;
        for (llama_token value; stream >> value;) values.push_back(value);
        return values;
    }

    std::string text(const std::string& words) {
        std::vector<llama_token> ids(words.size() + 8);
        const int count = tokenize(vocab_, words, ids);
        if (count < 0) fail("cannot tokenize");
        std::string line = "ids";
        for (int i = 0; i < count; i++) line += " " + std::to_string(ids[static_cast<size_t>(i)]);
        return line;
    }

    std::string decode(const std::vector<llama_token>& tokens) {
        const int count = static_cast<int>(tokens.size());
        if (count == 0 || n_past_ + count > kContext) fail("a batch of no tokens or of too many");
        batch_.n_tokens = count;
        for (int i = 0; i < count; i++) {
            batch_.token[i] = tokens[static_cast<size_t>(i)];
            batch_.pos[i] = n_past_ + i;
            batch_.n_seq_id[i] = 1;
            batch_.seq_id[i][0] = 0;
            batch_.logits[i] = i == count - 1;
        }
        const int status = llama_decode(context_, batch_);
        if (status != 0) fail("llama_decode returned " + std::to_string(status));
        n_past_ += count;
        const float* row = llama_get_logits_ith(context_, count - 1);
        if (std::fwrite(row, sizeof(float), static_cast<size_t>(n_vocab_), out_) != static_cast<size_t>(n_vocab_) ||
            std::fflush(out_) != 0)
            fail("cannot write logits");
        return "top " + std::to_string(std::max_element(row, row + n_vocab_) - row);
    }

    std::string piece(const std::vector<llama_token>& tokens) {
        static const char digits[] = "0123456789abcdef";
        std::string line = "piece ";
        for (const llama_token token : tokens) {
            char buffer[256];
            const int size = token_piece(vocab_, token, buffer, static_cast<int>(sizeof buffer));
            for (int i = 0; i < size; i++) {
                const auto byte = static_cast<unsigned char>(buffer[i]);
                line += {digits[byte >> 4], digits[byte & 15]};
            }
        }
        return line;
    }

    llama_context* context_;
    const llama_vocab* vocab_;
    const int n_vocab_;
    std::FILE* out_;
    llama_batch batch_;
    int n_past_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 5) fail("usage: client MODEL on|off THREADS OUT [HOST:PORT ...]");
    llama_log_set([](ggml_log_level, const char* text, void*) { g_log += text; }, nullptr);
    llama_backend_init();
    Servers servers;
    for (int i = 5; i < argc; i++) servers.add(argv[i]);

    llama_model_params model_params = llama_model_default_params();
    servers.apply(model_params);
    llama_model* model = llama_model_load_from_file(argv[1], model_params);
    if (model == nullptr) fail(std::string("cannot load ") + argv[1]);

    llama_context_params context_params = llama_context_default_params();
    context_params.n_ctx = context_params.n_batch = kContext;
    context_params.n_threads = context_params.n_threads_batch = std::atoi(argv[3]);
    set_flash(context_params, std::string(argv[2]) == "on");
    llama_context* context = llama_init_from_model(model, context_params);
    if (context == nullptr) fail("cannot create a context");

    const llama_vocab* vocab = llama_model_get_vocab(model);
    std::cout << "ready " << llama_vocab_n_tokens(vocab) << std::endl;
    Session session(context, vocab, argv[4]);
    for (std::string line; std::getline(std::cin, line);) std::cout << session.answer(line) << std::endl;
    llama_free(context);
#ifdef PEER_IK
    llama_free_model(model);
#else
    llama_model_free(model);
#endif
    return 0;
}
