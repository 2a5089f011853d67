// The border between org.clusir.Clusir and clusir's C interface. Pixels are direct byte buffers: nothing is copied
// here.
#include <jni.h>

#include <clusir/clusir.h>

#include <vector>

namespace {

clusir_model* model_of(jlong handle) { return reinterpret_cast<clusir_model*>(handle); }

// Throws `name` in Java with clusir's line; the caller returns at once.
void raise(JNIEnv* env, clusir_status status) {
    const char* name = status == CLUSIR_INVALID_ARGUMENT ? "java/lang/IllegalArgumentException"
                       : status == CLUSIR_CANCELLED      ? "java/util/concurrent/CancellationException"
                       : status == CLUSIR_OUT_OF_MEMORY  ? "java/lang/OutOfMemoryError"
                                                         : "java/lang/RuntimeException";
    if (jclass kind = env->FindClass(name)) env->ThrowNew(kind, clusir_last_error());
}

struct Listener {
    JNIEnv* env;
    jobject object;
    jmethodID method;
};

// Called on the thread that called restore, so its JNIEnv is the right one. An exception in the listener stops the run.
int progress(void* user, uint32_t done, uint32_t total) {
    auto* listener = static_cast<Listener*>(user);
    const jboolean go = listener->env->CallBooleanMethod(listener->object, listener->method, static_cast<jint>(done),
                                                         static_cast<jint>(total));
    return listener->env->ExceptionCheck() || !go ? 1 : 0;
}

}  // namespace

extern "C" {

JNIEXPORT jlong JNICALL Java_org_clusir_Clusir_open(JNIEnv* env, jclass, jobject graph, jobject router, jstring library,
                                                    jint threads) {
    clusir_open_options options{};
    options.struct_size = sizeof options;
    options.backend = "ort";
    options.threads = threads;
    const char* name = library != nullptr ? env->GetStringUTFChars(library, nullptr) : nullptr;
    options.ort_library = name;
    const auto bytes = [env](jobject buffer) {
        return buffer != nullptr ? env->GetDirectBufferAddress(buffer) : nullptr;
    };
    const auto size = [env](jobject buffer) {
        const jlong capacity = buffer != nullptr ? env->GetDirectBufferCapacity(buffer) : 0;
        return static_cast<size_t>(capacity > 0 ? capacity : 0);
    };
    clusir_model* model = nullptr;
    const clusir_status status =
        clusir_open_memory(bytes(graph), size(graph), bytes(router), size(router), &options, &model);
    if (name != nullptr) env->ReleaseStringUTFChars(library, name);
    if (status != CLUSIR_OK) raise(env, status);
    return reinterpret_cast<jlong>(model);
}

JNIEXPORT void JNICALL Java_org_clusir_Clusir_close(JNIEnv*, jclass, jlong handle) { clusir_close(model_of(handle)); }

JNIEXPORT jfloatArray JNICALL Java_org_clusir_Clusir_restore(JNIEnv* env, jclass, jlong handle, jobject in, jobject out,
                                                             jint width, jint height, jint channels, jobject listener) {
    clusir_spec spec{};
    spec.struct_size = sizeof spec;
    if (clusir_get_spec(model_of(handle), &spec) != CLUSIR_OK) return raise(env, CLUSIR_INVALID_ARGUMENT), nullptr;
    const auto wide = static_cast<uint32_t>(width), high = static_cast<uint32_t>(height),
               deep = static_cast<uint32_t>(channels);
    const auto needed = static_cast<jlong>(wide) * static_cast<jlong>(high) * static_cast<jlong>(deep);
    const auto holds = [&](jobject buffer) {
        return buffer != nullptr && needed > 0 && env->GetDirectBufferCapacity(buffer) >= needed;
    };
    if (width < 1 || height < 1 || channels < 1 || channels > 4 || !holds(in) || !holds(out)) {
        env->ThrowNew(env->FindClass("java/lang/IllegalArgumentException"),
                      "the buffers are not direct ones of width x height x channels bytes");
        return nullptr;
    }
    const clusir_image from{env->GetDirectBufferAddress(in), wide, high, deep, CLUSIR_U8, 0};
    const clusir_image to{env->GetDirectBufferAddress(out), wide, high, deep, CLUSIR_U8, 0};
    std::vector<float> posterior(spec.posterior_size);
    Listener target{env, listener, nullptr};
    clusir_run_options options{};
    options.struct_size = sizeof options;
    if (listener != nullptr) {
        target.method = env->GetMethodID(env->GetObjectClass(listener), "onProgress", "(II)Z");
        if (target.method == nullptr) return nullptr;  // NoSuchMethodError is on its way
        options.progress = progress;
        options.user = &target;
    }
    if (spec.posterior_size > 0) options.posterior = posterior.data();
    const clusir_status status = clusir_restore(model_of(handle), &from, &to, &options);
    if (env->ExceptionCheck()) return nullptr;
    if (status != CLUSIR_OK) return raise(env, status), nullptr;
    const auto count = static_cast<jsize>(spec.posterior_size);
    jfloatArray result = env->NewFloatArray(count);
    if (result != nullptr) env->SetFloatArrayRegion(result, 0, count, posterior.data());
    return result;
}

JNIEXPORT jstring JNICALL Java_org_clusir_Clusir_label(JNIEnv* env, jclass, jlong handle, jint level, jint cluster) {
    return env->NewStringUTF(
        clusir_cluster_label(model_of(handle), static_cast<uint32_t>(level), static_cast<uint32_t>(cluster)));
}

}  // extern "C"
