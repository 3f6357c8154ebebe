// SHA-256, JSON and NumPy archives by hand-worked examples; bundles are tested from Python (test_cpp_core.py).
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "resnet_deploy/bundle.hpp"
#include "resnet_deploy/golden.hpp"
#include "resnet_deploy/npz.hpp"

using namespace resnet_deploy;

namespace {

template <class Work>
std::string refusal(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    CHECK(error.code() == Code::bundle);
    return error.what();
  }
  return "";
}

std::string refusal_of_json(const std::string& text) {
  return refusal([&] { parse_json(text); });
}

/// Two bytes, or four, of a number.
std::string u16(unsigned value) { return {static_cast<char>(value & 255), static_cast<char>(value >> 8 & 255)}; }
std::string u32(unsigned value) { return u16(value & 0xffff) + u16(value >> 16); }

std::string npy(const std::string& header, const std::string& data) {
  return std::string("\x93NUMPY\x01\x00", 8) + u16(static_cast<unsigned>(header.size())) + header + data;
}

/// An archive of one entry, with what its central header may say otherwise.
struct Zip {
  std::string data;
  unsigned flags = 0, method = 0, stored_size = 0, size = 0, local = 0, count = 1;

  explicit Zip(std::string entry) : data(std::move(entry)) { stored_size = size = static_cast<unsigned>(data.size()); }

  std::string text() const {
    const std::string head = "PK\x03\x04" + u16(45) + std::string(20, '\xff') + u16(5) + u16(3) + "a.npy" + "zip";
    const std::string entry = "PK\x01\x02" + u16(45) + u16(45) + u16(flags) + u16(method) + std::string(8, '\0') +
                              u32(stored_size) + u32(size) + u16(5) + u16(0) + u16(0) + std::string(8, '\0') +
                              u32(local) + "a.npy";
    const std::string end = "PK\x05\x06" + std::string(4, '\0') + u16(count) + u16(count) +
                            u32(static_cast<unsigned>(entry.size())) +
                            u32(static_cast<unsigned>(head.size() + data.size())) + u16(0);
    return head + data + entry + end;
  }
};

std::string refusal_of_npz(const std::string& text) {
  return refusal([&] { read_npz(text.data(), text.size()); });
}

const std::string header_text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }\n";
const std::string floats(8, 'x');

}  // namespace

TEST_CASE("SHA-256 of FIPS 180-4's examples") {
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST_CASE("SHA-256 does not depend on the pieces") {
  const std::string data(300, 'a');
  for (const std::size_t piece : std::vector<std::size_t>{1, 7, 55, 63, 64, 65, 128, 300}) {
    Sha256 digest;
    for (std::size_t i = 0; i < data.size(); i += piece)
      digest.update(data.data() + i, std::min(piece, data.size() - i));
    CHECK(digest.hex() == sha256(data));
  }
  CHECK(sha256(data) != sha256(data + "a"));
}

#if RESNET_DEPLOY_SHA_INSTRUCTIONS
TEST_CASE("SHA-256 by instructions is SHA-256" * doctest::skip(!detail::has_sha_instructions())) {
  detail::Sha256State plain{}, by_instructions{};
  std::vector<std::uint8_t> block(64);
  std::uint32_t state = 1;
  for (int i = 0; i < 1000; ++i) {
    for (std::uint8_t& byte : block) byte = static_cast<std::uint8_t>((state = state * 1664525 + 1013904223) >> 24);
    detail::sha256_compress_plain(plain, block.data());
    detail::sha256_compress_x86(by_instructions, block.data());
    REQUIRE(plain == by_instructions);
  }
  block[63] ^= 1;
  detail::sha256_compress_plain(plain, block.data());
  CHECK(plain != by_instructions);
}
#endif

TEST_CASE("a file is read as long as it was when it was opened, or shorter") {
  const char* given = std::getenv("TMPDIR");
  const std::string folder = given != nullptr ? given : "/tmp", path = folder + "/changing";
  const auto write = [&](const std::string& text) { std::ofstream(path, std::ios::binary) << text; };
  write("0123456789");
  detail::InputFile grown(folder, "changing"), cut(folder, "changing"), digested(folder, "changing");
  write("0123456789 and more");
  CHECK(grown.read_all() == "0123456789");
  CHECK(digested.sha256() == sha256("0123456789"));
  write("012");
  CHECK(cut.read_all() == "012");
}

TEST_CASE("JSON is written in the order of keys, with the shortest numbers") {
  const Json json =
      parse_json(R"( {"b": [1e2, 0.1, -0, -0.0, 1e16, 123456.5e10, 0.00001, 1e-6], "a": "\u007f\u0001\/\"é"} )");
  CHECK(canonical_json(json) ==
        "{\"a\":\"\x7f\\u0001/\\\"é\",\"b\":[100.0,0.1,0,-0.0,1e16,1234565000000000.0,0.00001,1e-6]}");
}

TEST_CASE("JSON that readers take differently is refused") {
  CHECK(refusal_of_json(R"({"a": 1, "\u0061": 2})") == "the key \"a\" is given twice");
  CHECK(refusal_of_json(R"({"b": {"a": 1}, "a": {"a": 2}})") == "");
  CHECK(refusal_of_json("18446744073709551615") == "");
  CHECK(refusal_of_json("18446744073709551616") == "an integer is out of range");
  CHECK(refusal_of_json("-9223372036854775809") == "an integer is out of range");
  CHECK(refusal_of_json(std::string("1\0", 2)) == "it has a zero byte");
  CHECK(refusal_of_json("\xEF\xBB\xBF{}") == "it begins with a byte-order mark");
  CHECK(refusal_of_json(std::string(64, '[') + std::string(64, ']')) == "");
  CHECK(refusal_of_json(std::string(65, '[') + std::string(65, ']')) == "it is nested too deeply");
  CHECK(refusal_of_json(std::string(1'000'000, '[')) == "it is nested too deeply");
  for (const char* text : {"", " ", "nul", "01", "1.", "NaN", "1e400", "[1,]", "{\"a\"}", "\"\xff\"", "\"\\ud800\"",
                           "\"\xed\xa0\x80\"", "\"\xc0\x80\"", "\"\t\"", "1 2", "// 1\n1"}) {
    CHECK(refusal_of_json(text).rfind("it is no JSON from byte ", 0) == 0);
  }
}

TEST_CASE("JSON of more values than any manifest has is refused") {
  std::string text = "[";
  for (int i = 0; i < 1'000'000; ++i) text += "0,";
  CHECK(refusal_of_json(text + "0]") == "it has more than a million values");
}

TEST_CASE("an array in an archive is found") {
  const std::string text = Zip(npy(header_text, floats)).text();
  const auto arrays = read_npz(text.data(), text.size());
  REQUIRE(arrays.count("a") == 1);
  CHECK(arrays.at("a").shape == std::vector<std::size_t>{2, 1});
  CHECK(std::string(arrays.at("a").data, arrays.at("a").nbytes) == floats);
}

TEST_CASE("no beginning of an archive is one") {
  const std::string text = Zip(npy(header_text, floats)).text();
  for (std::size_t size = 0; size < text.size(); ++size) CHECK(!refusal_of_npz(text.substr(0, size)).empty());
}

TEST_CASE("archives that are not as NumPy stores arrays are refused, with the reason") {
  const auto changed = [](auto change) {
    Zip zip(npy(header_text, floats));
    change(zip);
    return refusal_of_npz(zip.text());
  };
  CHECK(changed([](Zip&) {}) == "");
  CHECK(changed([](Zip& zip) { zip.method = 8; }) == "an array is compressed or encrypted");
  CHECK(changed([](Zip& zip) { zip.flags = 1; }) == "an array is compressed or encrypted");
  CHECK(changed([](Zip& zip) { zip.size += 1; }) == "an array is compressed or encrypted");
  CHECK(changed([](Zip& zip) { zip.size = zip.stored_size = 0xffffffff; }) == "an array is 4 GiB or larger");
  CHECK(changed([](Zip& zip) { zip.size = zip.stored_size = 0xfffffffe; }) == "the archive is cut short");
  CHECK(changed([](Zip& zip) { zip.local = 0xfffffffe; }) == "the archive is cut short");
  CHECK(changed([](Zip& zip) { zip.local = 2; }) == "the archive's directory is damaged");
  CHECK(changed([](Zip& zip) { zip.count = 0xffff; }) == "it is a ZIP64 archive");
  CHECK(changed([](Zip& zip) { zip.count = 2; }) == "the archive's directory is damaged");
}

TEST_CASE("arrays of other kinds are refused, with the reason") {
  const auto header = [](const std::string& text, std::size_t size = 8) {
    return refusal_of_npz(Zip(npy(text, std::string(size, 'x'))).text());
  };
  CHECK(header("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }") == "an array is neither uint8 nor float32");
  CHECK(header("{'descr': '|u1', 'fortran_order': True, 'shape': (8,), }") == "an array is in Fortran's order");
  CHECK(header("{'descr': '|u1', 'fortran_order': False, 'shape': (8,), }") == "");
  CHECK(header("{'descr': '|u1', 'fortran_order': False, 'shape': (), }", 1) == "");
  CHECK(header("{'descr': '|u1', 'fortran_order': False, 'shape': (9,), }") == "an array is cut short");
  CHECK(header("{'descr': '|u1', 'fortran_order': False, 'shape': (7,), }") ==
        "an array is not as long as its shape says");
  CHECK(header("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 4294967296), }", 0) == "");
  CHECK(header("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296), }") ==
        "an array is cut short");
  CHECK(header("{'descr': '|u1', 'fortran_order': False, 'shape': (-8,), }") ==
        "an array's shape is not as NumPy writes it");
  CHECK(header("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999,), }") ==
        "an array's shape is not as NumPy writes it");
  CHECK(header("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 1), }") ==
        "an array has more than 8 dimensions");
  CHECK(header("{'shape': (8,)}") == "an array's header is not as NumPy writes it");
}

TEST_CASE("the worst difference of logits is infinite where one is no number") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  CHECK(worst_difference({1, 2}, {1, 2}) == 0);
  CHECK(worst_difference({1, 2}, {1.5F, 1.75F}) == 0.5);
  CHECK(worst_difference({1, 2}, {1, nan}) == infinity);
  CHECK(worst_difference({1, infinity}, {1, infinity}) == infinity);
}
